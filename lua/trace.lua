#!lua
-- trace.lua: which items of the outbox have records of a series behind a place. Writes nothing.
--
-- Each item says which one before it has records of the series: the way leads back from the last.
--
-- KEYS[1]  shard hash      KEYS[2]  hash of the shard's series      KEYS[3]  outbox
-- KEYS[4]  what the keys of the series begin with (allocate.lua)
-- ARGV[1]  epoch           ARGV[2]  generation      ARGV[3]  the series' id
-- ARGV[4]  the item to begin with, '' for the last that the series has
-- ARGV[5]  position and    ARGV[6]  k of the place
-- ARGV[7]  how many items to look at
--
-- Replies {'stale'}, {'damaged', what}, or {'traced', {item, ...}, next, voids}: the newest first, the item to go on
-- with in another call, or 0, and 1 when entries of the series are void.

-- @include series.lua

local text = series.text

-- The place before the records that an item of the outbox has of a series (position and k), and the item before that
-- has some; nothing when it has none. A note is a skip or a void (note.lua).
local function before(fields, name)
  if fields[1] == 'note' then
    local noted, position, k, back = unpack(cmsgpack.unpack(fields[2]))
    if noted == name then
      return position, k - 1, back
    end
    return nil
  end
  for i = 1, #fields, 2 do
    local issued, first, k, _, back = struct.unpack(series.HEAD, fields[i])
    if issued == name then
      return first - 1, k, back
    end
  end
end

if not series.is_current(KEYS[1], ARGV[1], ARGV[2]) then
  return { 'stale' }
end
local settled, item = tonumber(redis.call('HGET', KEYS[1], 'settled')), tonumber(ARGV[4])
local position, k, found = tonumber(ARGV[5]), tonumber(ARGV[6]), {}
if not item then
  local packed = redis.call('HGET', KEYS[2], ARGV[3])
  item = packed and series.unpack(packed).item or 0
end
while item > settled and #found < tonumber(ARGV[7]) do
  local read = redis.call('XRANGE', KEYS[3], text(item), text(item))[1]
  local ends, ends_k, back = before(read and read[2] or {}, ARGV[3])
  if not ends then
    return { 'damaged', 'item ' .. text(item) .. ' of the outbox is missing, or is another' }
  end
  found[#found + 1] = item
  item = (ends < position or (ends == position and ends_k <= k)) and 0 or back
end
return { 'traced', found, item > settled and item or 0, redis.call('EXISTS', KEYS[4] .. ':voids') }
