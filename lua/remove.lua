#!lua
-- remove.lua: forget a series that the store has deleted. A series with records is never forgotten.
--
-- KEYS[1]  shard hash: epoch, generation      KEYS[2]  hash of the shard's series
-- KEYS[3]  bucket 0 of the series' id index
-- ARGV[1]  epoch       ARGV[2]  generation    ARGV[3]  series id
--
-- Replies 'stale', 'used', or 'ok'.

-- @include series.lua

if not series.is_current(KEYS[1], ARGV[1], ARGV[2]) then
  return 'stale'
end
local packed = redis.call('HGET', KEYS[2], ARGV[3])
local state = packed and series.unpack(packed)
if state and (state.position > 0 or state.k > 0) then
  return 'used'
end
redis.call('HDEL', KEYS[2], ARGV[3])
redis.call('DEL', KEYS[3])
return 'ok'
