-- Renews a node's lease in a partition.
-- KEYS: leases
-- ARGV: 1 node, 2 lease (ms), 3 has members here (0/1)
-- Returns {1 when the lease was unbroken, nodes whose lease has run out}.
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
local unbroken = 0
if score and tonumber(score) > now_ms then
  unbroken = 1
end
if ARGV[3] == '1' then
  redis.call('ZADD', KEYS[1], string.format('%.0f', now_ms + tonumber(ARGV[2])), ARGV[1])
end
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now_ms),
  'LIMIT', 0, 16)
return {unbroken, dead}
