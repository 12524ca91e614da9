-- Adds a client to a channel, owned by a node.
-- KEYS: members, users, owned, leases
-- ARGV: 1 client, 2 value, 3 user, 4 channel, 5 node, 6 lease (ms)
-- Returns 1 when it was not there.
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local is_new = redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if is_new == 1 then
  redis.call('HINCRBY', KEYS[2], ARGV[3], 1)
end
redis.call('SADD', KEYS[3], ARGV[1] .. ARGV[4])
-- A lease is begun here, but renewed by its own script alone: that one notices an expired one.
redis.call('ZADD', KEYS[4], 'NX', string.format('%.0f', now_ms + tonumber(ARGV[6])), ARGV[5])
return is_new
