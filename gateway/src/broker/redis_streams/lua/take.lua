-- Takes old outbox entries, for the node that has or gets the partition's lease.
-- KEYS: lease, outbox
-- ARGV: 1 node, 2 lease (ms), 3 youngest entry id, 4 limit
-- Returns {id, item, channel, …}.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then
  return {}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local taken = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', ARGV[3], 'COUNT', ARGV[4])) do
  table.insert(taken, entry[1])
  table.insert(taken, entry[2][2])
  table.insert(taken, entry[2][4])
end
return taken
