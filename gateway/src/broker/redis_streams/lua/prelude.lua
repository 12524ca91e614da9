-- Every script that asks for a channel's position begins with this.

local function number(n)
  return string.format('%.0f', n)
end

-- The identity of this primary's data: another one after a failover, a restart or a restored copy.
local function replid()
  local info = redis.call('INFO', 'replication')
  if not string.find(info, 'role:master', 1, true) then
    error({err = 'READONLY positions are given by the primary only'})
  end
  return string.match(info, 'master_replid:(%x+)')
end

-- Returns epoch, base and top of a channel; begins a new epoch when there is none, or when the
-- data is another primary's. Offsets of durable channels never restart.
local function open_stream(meta, stream, durable, candidate, now_us)
  local known = redis.call('HMGET', meta, 'epoch', 'base', 'top', 'replid')
  local current = replid()
  if known[1] and known[4] == current then
    return known[1], tonumber(known[2]), tonumber(known[3])
  end
  local base = 0
  if durable then
    base = math.max(tonumber(known[3] or '0'), now_us)
  end
  redis.call('DEL', stream)
  redis.call('HSET', meta, 'epoch', candidate, 'base', number(base), 'top', number(base),
    'replid', current)
  return candidate, base, base
end
