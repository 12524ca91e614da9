-- Removes an entry from the outbox and tells the channel's current epoch.
-- KEYS: outbox, meta
-- ARGV: 1 entry id
-- Returns the epoch, empty when there is none or the data is another primary's.
redis.call('XDEL', KEYS[1], ARGV[1])
local known = redis.call('HMGET', KEYS[2], 'epoch', 'replid')
if known[1] and known[2] == replid() then
  return known[1]
end
return ''
