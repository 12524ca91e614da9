-- Reads a part of a channel's history, and always its position.
-- KEYS: meta, stream
-- ARGV: 1 candidate epoch, 2 durable (0/1), 3 history size, 4 meta ttl (ms), 5 since epoch
--       (empty: any), 6 since offset (empty: none), 7 limit (empty: all), 8 reverse (0/1)
-- Returns {epoch, base, top, items}; no items when `since` belongs to another epoch.
local meta, stream = KEYS[1], KEYS[2]
local size, limit, reverse = tonumber(ARGV[3]), ARGV[7], ARGV[8] == '1'
local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local epoch, base, top = open_stream(meta, stream, ARGV[2] == '1', ARGV[1], now_us)
redis.call('PEXPIRE', meta, ARGV[4])

local items = {}
local is_other = ARGV[5] ~= '' and ARGV[5] ~= epoch
if limit ~= '0' and not is_other then
  -- Trimming is approximate: what is older than the history's size is not there.
  local first, last = top - size + 1, top
  local since = tonumber(ARGV[6])
  if since and reverse then
    last = math.min(last, since - 1)
  elseif since then
    first = math.max(first, since + 1)
  end
  first = math.max(first, 1)
  if first <= last then
    local from, to = number(first) .. '-0', number(last) .. '-0'
    local count = limit
    if count == '' then
      count = number(size)
    end
    local found
    if reverse then
      found = redis.call('XREVRANGE', stream, to, from, 'COUNT', count)
    else
      found = redis.call('XRANGE', stream, from, to, 'COUNT', count)
    end
    for i, entry in ipairs(found) do
      items[i] = entry[2][2]
    end
  end
end
return {epoch, number(base), number(top), items}
