-- A channel's row is node -> "<incarnation> <count>". The two indexes (KEYS[2], KEYS[3]) rank channels by sessions.
-- Sessions over the live nodes; dead rows are thrown out, and then the indexes follow.
local function total(key, channel)
  local rows, sum, dead = redis.call('HGETALL', key), 0, false
  for j = 1, #rows, 2 do
    local incarnation, count = string.match(rows[j + 1], '^(%S+) (%d+)$')
    if incarnation and holder(rows[j]) == incarnation then
      sum = sum + tonumber(count)
    else
      redis.call('HDEL', key, rows[j])
      dead = true
    end
  end
  if sum == 0 then
    redis.call('ZREM', KEYS[2], channel)
    redis.call('ZREM', KEYS[3], channel)
  elseif dead then
    redis.call('ZADD', KEYS[2], 'XX', sum, channel)
    redis.call('ZADD', KEYS[3], 'XX', sum, channel)
  end
  return sum
end
