-- Gives a lease back. ARGV: node, incarnation.
local _, incarnation = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^(%d+) (%S+)')
if incarnation == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
return 0
