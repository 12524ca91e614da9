-- Reads the member values that the gateway wrote: version, then field 1 (user), and so on.

local function varint(s, at)
  local n, factor = 0, 1
  while true do
    local byte = string.byte(s, at)
    at = at + 1
    n = n + (byte % 128) * factor
    if byte < 128 then
      return n, at
    end
    factor = factor * 128
  end
end

local function user_of(value)
  if string.byte(value, 2) ~= 10 then
    return '' -- Anonymous: Protobuf leaves an empty string out.
  end
  local length, at = varint(value, 3)
  return string.sub(value, at, at + length - 1)
end

-- Removes a client and keeps the users' counters right; returns its value when it was there.
local function remove(members, users, client)
  local value = redis.call('HGET', members, client)
  if not value then
    return false
  end
  redis.call('HDEL', members, client)
  local user = user_of(value)
  if redis.call('HINCRBY', users, user, -1) <= 0 then
    redis.call('HDEL', users, user)
  end
  return value
end
