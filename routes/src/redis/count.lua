-- Sets one node's own counts. KEYS[2]: the index that is written now, KEYS[3]: the other; KEYS[4..]: the channels' rows.
-- ARGV: node, incarnation, ms that a row is kept, ms that an index is kept, then channel and count for each.
for i = 4, #KEYS do
  local key, channel, count = KEYS[i], ARGV[5 + (i - 4) * 2], ARGV[6 + (i - 4) * 2]
  local writer = string.match(redis.call('HGET', key, ARGV[1]) or '', '^(%S+)')
  -- A process that was paused and has been replaced must not speak for its successor.
  if writer == nil or writer == ARGV[2] or holder(ARGV[1]) ~= writer then
    if count == '0' then
      redis.call('HDEL', key, ARGV[1])
    else
      redis.call('HSET', key, ARGV[1], ARGV[2] .. ' ' .. count)
      redis.call('PEXPIRE', key, ARGV[3])
    end
    -- What this node says of itself counts before its lease is seen here: it is about to be.
    local lease = held[ARGV[1]]
    held[ARGV[1]] = ARGV[2]
    total(key, channel)
    held[ARGV[1]] = lease
  end
end
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 0
