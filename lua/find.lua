#!lua
-- find.lua: where an id stands, its record if the outbox still holds it, and its void. Writes nothing.
--
-- KEYS[1]  shard hash      KEYS[2]  series hash      KEYS[3]  outbox
-- KEYS[4]  prefix of the id index, and of the voided positions (void.lua)
-- ARGV[1]  epoch           ARGV[2]  generation       ARGV[3]  the id's 16 bytes
--
-- Replies {'stale'}, {'unloaded'}, {'unknown'}, {'damaged', what}, or {'found', position, void or ''}, and behind that,
-- if the outbox holds the entry, the head of its run, its request, and the id before it there or '', see allocate.lua.

-- @include index.lua
-- @include series.lua

if not series.is_current(KEYS[1], ARGV[1], ARGV[2]) then
  return { 'stale' }
end
local known = redis.call('HGET', KEYS[2], 'at')
if not known then
  return { 'unloaded' }
end
local position, _, settled = series.unpack_at(known)
local ids = index.open(KEYS[4], position)
local value = index.find(ids, ARGV[3])
if not value then
  return index.is_whole(ids) and { 'unknown' } or { 'damaged', 'a bucket of the id index is missing' }
end
local _, at = index.unpack(value)
local void = redis.call('HGET', KEYS[4] .. ':voids', series.text(at)) or ''
if at <= settled then
  return { 'found', at, void }
end
local head, request, before = series.entry(KEYS[3], at, ARGV[3])
if not head then
  return { 'damaged', 'entry ' .. series.text(at) .. ' is neither in the outbox nor settled' }
end
return { 'found', at, void, head, request, before }
