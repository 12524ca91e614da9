-- Removes a client from a channel.
-- KEYS: members, users, owned
-- ARGV: 1 client, 2 channel
-- Returns 1 when it was there.
redis.call('SREM', KEYS[3], ARGV[1] .. ARGV[2])
if remove(KEYS[1], KEYS[2], ARGV[1]) then
  return 1
end
return 0
