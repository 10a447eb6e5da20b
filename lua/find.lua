#!lua
-- find.lua: where an id stands, its record if the outbox still holds it, and its void. Writes nothing.
--
-- KEYS[1]  shard hash      KEYS[2]  series hash      KEYS[3]  outbox
-- KEYS[4]  prefix of the id index, and of the voided positions (void.lua)
-- ARGV[1]  epoch           ARGV[2]  generation       ARGV[3]  the id's 16 bytes
--
-- Replies {'stale'}, {'unloaded'}, {'unknown'}, {'damaged'}, or {'found', position, record, void or ''}; record is
-- the outbox's flat list of fields, empty when the record is settled.

-- @include index.lua
-- @include series.lua

if not series.is_current(KEYS[1], ARGV[1], ARGV[2]) then
  return { 'stale' }
end
local position = redis.call('HGET', KEYS[2], 'position')
if not position then
  return { 'unloaded' }
end
local value = index.find(index.open(KEYS[4], tonumber(position)), ARGV[3])
if value == nil then
  return { 'damaged' }
elseif not value then
  return { 'unknown' }
end
local _, at = index.unpack(value)
local place = series.text(at)
local found = redis.call('XRANGE', KEYS[3], place .. '-0', place .. '-0')
return { 'found', at, found[1] and found[1][2] or {}, redis.call('HGET', KEYS[4] .. ':voids', place) or '' }
