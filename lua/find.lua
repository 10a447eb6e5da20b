#!lua
-- find.lua: where an id stands, and its record if the outbox still holds it. Writes nothing.
--
-- KEYS[1]  shard hash        KEYS[2]  series hash        KEYS[3]  outbox        KEYS[4]  prefix of the id index
-- ARGV[1]  epoch             ARGV[2]  generation         ARGV[3]  the id's 16 bytes
--
-- Replies {'stale'}, {'unloaded'}, {'unknown'}, {'damaged'}, or {'found', position, record}; record is the outbox's
-- flat list of fields, empty when the record is settled.

-- @include index.lua

local shard = redis.call('HMGET', KEYS[1], 'epoch', 'generation')
if shard[1] ~= ARGV[1] or shard[2] ~= ARGV[2] then
  return { 'stale' }
end
local position = redis.call('HGET', KEYS[2], 'position')
if not position then
  return { 'unloaded' }
end
local fingerprint, at = index.find(KEYS[4], tonumber(position), ARGV[3])
if not fingerprint then
  return { 'unknown' }
elseif fingerprint == 'lost' then
  return { 'damaged' }
end
local key = string.format('%.0f-0', at)
local found = redis.call('XRANGE', KEYS[3], key, key)
return { 'found', at, found[1] and found[1][2] or {} }
