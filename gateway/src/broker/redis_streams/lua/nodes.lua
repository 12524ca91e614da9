-- Lists the values of live nodes.
-- KEYS: live, info
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local live = redis.call('ZRANGEBYSCORE', KEYS[1], string.format('%.0f', now_ms), '+inf')
local values = {}
for _, node in ipairs(live) do
  local value = redis.call('HGET', KEYS[2], node)
  if value then
    table.insert(values, value)
  end
end
return values
