-- Stands before every script that must know who lives. KEYS[1]: the shard's table of nodes,
-- node -> "<deadline, ms since 1970> <incarnation> ...", by this server's own clock.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = {}

-- The incarnation that holds the node's lease, or ''.
local function holder(node)
  if held[node] == nil then
    local deadline, incarnation = string.match(redis.call('HGET', KEYS[1], node) or '', '^(%d+) (%S+)')
    held[node] = deadline and tonumber(deadline) > now and incarnation or ''
  end
  return held[node]
end

-- A user's row is session -> "<node>\n<incarnation>\n<device>"; a key's value has "<session>\n" before that.
local function fields(value)
  return string.match(value, '^([^\n]*)\n([^\n]*)\n(.*)$')
end

local function live(value)
  local node, incarnation = fields(value)
  return node ~= nil and holder(node) == incarnation
end
