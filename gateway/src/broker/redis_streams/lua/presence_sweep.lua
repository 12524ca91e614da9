-- Removes one member of a dead node, and tells that it left, in one step: whoever finds a member
-- to remove is the one who tells.
-- KEYS: leases, owned, members, users, bell
-- ARGV: 1 node, 2 client, 3 channel (client empty: only forget the node when nothing is left)
-- Returns 1 when a member was removed.
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if score and tonumber(score) > now_ms then
  return 0 -- It came back.
end
local removed = 0
if ARGV[2] ~= '' and redis.call('SREM', KEYS[2], ARGV[2] .. ARGV[3]) == 1 then
  local value = remove(KEYS[3], KEYS[4], ARGV[2])
  if value then
    removed = 1
    -- An item: version, field 5 (client), field 8 (kind) = 2, a leave.
    local length, prefix = #value - 1, ''
    while length >= 128 do
      prefix = prefix .. string.char(length % 128 + 128)
      length = math.floor(length / 128)
    end
    prefix = prefix .. string.char(length)
    redis.call('SPUBLISH', KEYS[5], '\1\42' .. prefix .. string.sub(value, 2) .. '\64\2')
  end
end
if redis.call('SCARD', KEYS[2]) == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return removed
