-- Applies changes in order. KEYS[2..]: the row of each; ARGV[1]: ms that a row is kept; then for each change
-- its kind (U+ U- K+ K-), session, node, incarnation, device.
-- Answers the displaced sessions of keys: the change's number from 0, the old value, and so on.
local displaced = {}
for i = 2, #KEYS do
  local at = 2 + (i - 2) * 5
  local key, kind, session = KEYS[i], ARGV[at], ARGV[at + 1]
  local incarnation = ARGV[at + 3]
  local value = ARGV[at + 2] .. '\n' .. incarnation .. '\n' .. ARGV[at + 4]
  if kind == 'U+' then
    redis.call('HSET', key, session, value)
    redis.call('PEXPIRE', key, ARGV[1])
    -- Nobody may ever look for this user: dead rows are thrown out here too, now and then.
    if redis.call('HLEN', key) % 8 == 0 then
      local rows = redis.call('HGETALL', key)
      for j = 1, #rows, 2 do
        if rows[j] ~= session and not live(rows[j + 1]) then redis.call('HDEL', key, rows[j]) end
      end
    end
  elseif kind == 'U-' then
    local _, writer = fields(redis.call('HGET', key, session) or '')
    if writer == incarnation then redis.call('HDEL', key, session) end
  else
    local old_session, old = string.match(redis.call('GET', key) or '', '^([^\n]*)\n(.*)$')
    if kind == 'K+' then
      local another = old and old_session ~= session and live(old)
      -- A process that was paused and has lost its lease must not take a key from a live session.
      if not another or live(value) then
        if another then
          displaced[#displaced + 1] = i - 2
          displaced[#displaced + 1] = old_session .. '\n' .. old
        end
        redis.call('SET', key, session .. '\n' .. value, 'PX', ARGV[1])
      end
    elseif old then
      local _, writer = fields(old)
      if old_session == session and writer == incarnation then redis.call('DEL', key) end
    end
  end
end
return displaced
