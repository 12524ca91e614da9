-- Publishes: one atomic step from the epoch check to the bell.
-- KEYS: meta, stream, outbox, idempotency record, bell
-- ARGV: 1 candidate epoch, 2 history size (0: none), 3 history ttl (ms), 4 meta ttl (ms),
--       5 offsets of a durable channel (0/1), 6 item without offset, time and epoch, 7 tail of the idempotency record
--       (empty: no key), 8 its ttl (ms), 9 outbox limit, 10 channel, 11 again (0/1),
--       12 into the outbox (0/1)
-- Returns {'published', epoch, offset, ms, outbox id}, {'known', record, outbox item or false}
-- or {'full'}.
local meta, stream, outbox, record, bell = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local size, again, durable = tonumber(ARGV[2]), ARGV[11] == '1', ARGV[12] == '1'
local keyed = ARGV[7] ~= ''
local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now_ms = math.floor(now_us / 1000)

local epoch, base, top = '', 0, 0
if size > 0 then
  epoch, base, top = open_stream(meta, stream, ARGV[5] == '1', ARGV[1], now_us)
end

if keyed then
  local known = redis.call('GET', record)
  if known then
    -- Version, then the outbox id and the epoch, each behind its tag and length: they come first
    -- so that no Protobuf decoder is needed here.
    local outbox_id = string.sub(known, 4, 3 + string.byte(known, 3))
    local at = 4 + #outbox_id
    local known_epoch = string.sub(known, at + 2, at + 1 + string.byte(known, at + 1))
    if not (again and known_epoch ~= epoch) then
      local waiting = false
      if outbox_id ~= '' then
        local found = redis.call('XRANGE', outbox, outbox_id, outbox_id)
        if found[1] then
          waiting = found[1][2][2]
        end
      end
      return {'known', known, waiting}
    end
  end
end

if durable and redis.call('XLEN', outbox) >= tonumber(ARGV[9]) then
  return {'full'}
end

local offset = 0
if size > 0 then
  offset = top + 1
end
-- An item: version, fields 1 (offset) and 2 (time) as fixed64, 3 (epoch), then the gateway's.
local item = '\1\9' .. struct.pack('<I8', offset) .. '\17' .. struct.pack('<I8', now_ms)
  .. '\26' .. string.char(#epoch) .. epoch .. ARGV[6]

local outbox_id = ''
if durable then
  outbox_id = redis.call('XADD', outbox, '*', 'p', item, 'c', ARGV[10])
end
if size > 0 then
  local added = redis.pcall('XADD', stream, 'MAXLEN', '~', size, number(offset) .. '-0', 'p', item)
  if type(added) == 'table' and added.err then
    -- Redis does not undo what a failed script wrote.
    if durable then
      redis.call('XDEL', outbox, outbox_id)
    end
    return added
  end
  redis.call('PEXPIRE', stream, ARGV[3])
  redis.call('HSET', meta, 'top', number(offset))
  redis.call('PEXPIRE', meta, ARGV[4])
end
if keyed then
  local value = '\1\10' .. string.char(#outbox_id) .. outbox_id
    .. '\18' .. string.char(#epoch) .. epoch
    .. '\41' .. struct.pack('<I8', offset) .. '\49' .. struct.pack('<I8', now_ms) .. ARGV[7]
  redis.call('SET', record, value, 'PX', ARGV[8])
end
redis.call('SPUBLISH', bell, item)
return {'published', epoch, number(offset), number(now_ms), outbox_id}
