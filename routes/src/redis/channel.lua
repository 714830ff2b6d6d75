-- A channel's row is node -> "<incarnation> <count>". The two indexes (KEYS[2], KEYS[3]) rank channels by sessions.
-- Sessions over the live nodes; dead rows are thrown out, and the indexes follow: whatever they said before (nodes that
-- died since, a row that Redis evicted), the channel is in the one that is written now, and where both have it they agree.
local function total(key, channel)
  local rows, sum = redis.call('HGETALL', key), 0
  for j = 1, #rows, 2 do
    local incarnation, count = string.match(rows[j + 1], '^(%S+) (%d+)$')
    if incarnation and holder(rows[j]) == incarnation then
      sum = sum + tonumber(count)
    else
      redis.call('HDEL', key, rows[j])
    end
  end
  if sum == 0 then
    redis.call('ZREM', KEYS[2], channel)
    redis.call('ZREM', KEYS[3], channel)
  else
    redis.call('ZADD', KEYS[2], sum, channel)
    redis.call('ZADD', KEYS[3], 'XX', sum, channel)
  end
  return sum
end
