#!lua
-- remove.lua: forget a series that the store has deleted. A series with records is never forgotten.
--
-- KEYS[1]  shard hash: epoch, generation      KEYS[2]  series hash: position, after      KEYS[3]  bucket 0 of its id
-- index
-- ARGV[1]  epoch       ARGV[2]  generation
--
-- Replies 'stale', 'used', or 'ok'.

local shard = redis.call('HMGET', KEYS[1], 'epoch', 'generation')
if shard[1] ~= ARGV[1] or shard[2] ~= ARGV[2] then
  return 'stale'
end
local series = redis.call('HMGET', KEYS[2], 'position', 'after')
if series[1] and (series[1] ~= '0' or series[2] ~= '0') then
  return 'used'
end
redis.call('DEL', KEYS[2], KEYS[3])
return 'ok'
