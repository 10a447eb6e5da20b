#!lua
-- find.lua: where an id stands, its record if the outbox still holds it, and its void. Writes nothing.
--
-- KEYS[1]  shard hash      KEYS[2]  hash of the shard's series      KEYS[3]  outbox
-- KEYS[4]  what the keys of the series begin with (allocate.lua)
-- ARGV[1]  epoch           ARGV[2]  generation     ARGV[3]  series id       ARGV[4]  the entry's 16 bytes of id
--
-- Replies {'stale'}, {'unloaded'}, {'unknown'}, {'damaged', what}, or {'found', position, void or ''}, and behind that,
-- if the outbox holds the entry, the head of its run, its request, and the id before it there or '', see allocate.lua.

-- @include index.lua
-- @include series.lua

if not series.is_current(KEYS[1], ARGV[1], ARGV[2]) then
  return { 'stale' }
end
local packed = redis.call('HGET', KEYS[2], ARGV[3])
if not packed then
  return { 'unloaded' }
end
local ids = index.open(KEYS[4], series.unpack(packed).position)
local value = index.find(ids, ARGV[4])
if ids.lost then
  return { 'damaged', 'a bucket of the id index is missing' }
elseif not value then
  return { 'unknown' }
end
local _, position, left = index.unpack(value)
local void = redis.call('HGET', KEYS[4] .. ':voids', series.text(position)) or ''
local shard = redis.call('HMGET', KEYS[1], 'settled', 'written')
return { 'found', position, void,
  series.entry(KEYS[3], ARGV[3], ARGV[4], index.items(left, tonumber(shard[1]), tonumber(shard[2]))) }
