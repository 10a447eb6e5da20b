#!lua
-- remove.lua: forget a series that the store has deleted. A series with records is never forgotten.
--
-- KEYS[1]  shard hash: epoch, generation      KEYS[2]  series hash: pos, k      KEYS[3]  bucket 0 of its id
-- index
-- ARGV[1]  epoch       ARGV[2]  generation
--
-- Replies 'stale', 'used', or 'ok'.

-- @include series.lua

if not series.is_current(KEYS[1], ARGV[1], ARGV[2]) then
  return 'stale'
end
local known = redis.call('HMGET', KEYS[2], 'pos', 'k')
if known[1] and (known[1] ~= '0' or known[2] ~= '0') then
  return 'used'
end
redis.call('DEL', KEYS[2], KEYS[3])
return 'ok'
