-- Marks a node's row in a shard's table of nodes complete. ARGV: node, incarnation.
if holder(ARGV[1]) == ARGV[2] then
  local deadline = string.match(redis.call('HGET', KEYS[1], ARGV[1]), '^%d+')
  redis.call('HSET', KEYS[1], ARGV[1], deadline .. ' ' .. ARGV[2] .. ' complete')
end
return 0
