#!lua
-- remove.lua: forget a series that the store has deleted. A series with records is never forgotten.
--
-- KEYS[1]  shard hash: epoch, generation      KEYS[2]  series hash: at      KEYS[3]  bucket 0 of its id
-- index
-- ARGV[1]  epoch       ARGV[2]  generation
--
-- Replies 'stale', 'used', or 'ok'.

-- @include series.lua

if not series.is_current(KEYS[1], ARGV[1], ARGV[2]) then
  return 'stale'
end
if series.is_used(redis.call('HGET', KEYS[2], 'at')) then
  return 'used'
end
redis.call('DEL', KEYS[2], KEYS[3])
return 'ok'
