-- Takes or renews a lease in one table of nodes. ARGV: node, incarnation, lease in ms, the rest of the row, whether the row
-- stays complete ('1': what it was; '': it does not). In the tables of the shards the rest is '' or 'complete'.
-- Answers 1: it was there; 0: it was not; 2: another incarnation held it.
local before = holder(ARGV[1])
local rest = ARGV[4]
if rest == '' and ARGV[5] == '1' and before == ARGV[2] then
  rest = string.match(redis.call('HGET', KEYS[1], ARGV[1]), '^%d+ %S+ (.*)$')
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %s %s', now + ARGV[3], ARGV[2], rest))
-- No deadline in the table is later than this one.
redis.call('PEXPIRE', KEYS[1], ARGV[3])
if before == '' then return 0 end
return before == ARGV[2] and 1 or 2
