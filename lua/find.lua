#!lua
-- find.lua: where an id stands, its record if the outbox still holds it, and its void. Writes nothing.
--
-- KEYS[1]  shard hash      KEYS[2]  series hash      KEYS[3]  outbox
-- KEYS[4]  prefix of the id index, and of the voided positions (void.lua)
-- ARGV[1]  epoch           ARGV[2]  generation       ARGV[3]  the id's 16 bytes
--
-- Replies {'stale'}, {'unloaded'}, {'unknown'}, {'damaged', what}, or {'found', position, record or '', void or ''};
-- record is the entry's in its run (allocate.lua), missing when it is settled.

-- @include index.lua
-- @include series.lua

if not series.is_current(KEYS[1], ARGV[1], ARGV[2]) then
  return { 'stale' }
end
local known = redis.call('HMGET', KEYS[2], 'pos', 'done')
if not known[1] then
  return { 'unloaded' }
end
local value = index.find(index.open(KEYS[4], tonumber(known[1])), ARGV[3])
if value == nil then
  return { 'damaged', 'a bucket of the id index is missing' }
elseif not value then
  return { 'unknown' }
end
local _, at = index.unpack(value)
local record = at <= tonumber(known[2]) and '' or series.record(KEYS[3], at, ARGV[3])
if not record then
  return { 'damaged', 'entry ' .. series.text(at) .. ' is neither in the outbox nor settled' }
end
return { 'found', at, record, redis.call('HGET', KEYS[4] .. ':voids', series.text(at)) or '' }
