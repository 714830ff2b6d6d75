-- The rest of each live row; dead rows are thrown out.
local rows = redis.call('HGETALL', KEYS[1])
local found = {}
for i = 1, #rows, 2 do
  local deadline, rest = string.match(rows[i + 1], '^(%d+) %S+ (.*)$')
  if deadline and tonumber(deadline) > now then
    found[#found + 1] = rest
  else
    redis.call('HDEL', KEYS[1], rows[i])
  end
end
return found
