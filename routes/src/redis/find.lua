-- The live sessions under each name, "<session>\n<node>\n<incarnation>\n<device>"; dead rows are thrown out.
-- Behind them the incarnations whose row in the table of nodes is complete.
-- KEYS[2..]: the names' rows; ARGV: U or K for each.
local found = {}
for i = 2, #KEYS do
  local key, sessions = KEYS[i], {}
  if ARGV[i - 1] == 'U' then
    local rows = redis.call('HGETALL', key)
    for j = 1, #rows, 2 do
      if live(rows[j + 1]) then
        sessions[#sessions + 1] = rows[j] .. '\n' .. rows[j + 1]
      else
        redis.call('HDEL', key, rows[j])
      end
    end
  else
    local value = redis.call('GET', key)
    if value then
      local route = string.match(value, '^[^\n]*\n(.*)$')
      if route and live(route) then sessions[1] = value else redis.call('DEL', key) end
    end
  end
  found[i - 1] = sessions
end
local complete = {}
for _, row in ipairs(redis.call('HVALS', KEYS[1])) do
  local deadline, incarnation = string.match(row, '^(%d+) (%S+) complete$')
  if deadline and tonumber(deadline) > now then complete[#complete + 1] = incarnation end
end
found[#KEYS] = complete
return found
