#!lua
-- claim.lua: in which series an id of a type is numbered: the one that was the company's default when it first came.
-- A claim never expires.
--
-- KEYS[1]  shard hash      KEYS[2]  company hash: version, open, changing, claims, default:<type>
-- KEYS[3]  prefix of the company's index of claims (index.lua)
-- ARGV[1]  epoch           ARGV[2]  generation     ARGV[3]  the id's 16 bytes      ARGV[4]  type
--
-- Replies {'claimed', the series' 16 bytes}, {'none'} (the type has no default), {'changing', for ms} (the default is
-- being changed), {'unloaded'}, {'damaged', what}, {'lost'}, {'halted', reason} or {'stale'}.

-- @include index.lua
-- @include series.lua

local word, reason = series.refused(redis.call('HMGET', KEYS[1], 'epoch', 'generation', 'halted'), ARGV[1], ARGV[2])
if word then
  return { word, reason }
end
local company = redis.call('HMGET', KEYS[2], 'open', 'claims', 'changing', 'default:' .. ARGV[4])
if company[1] ~= '1' then
  return { 'unloaded' }
end
local field, claims = ARGV[3] .. ARGV[4], tonumber(company[2])
local ids = index.open(KEYS[3], claims)
local known, bucket = index.find(ids, field)
if known then
  return { 'claimed', known }
elseif not index.can_grow(ids, claims + 1) then
  return { 'damaged', 'a bucket of the index of claims is missing or in the way' }
elseif company[3] then
  return { 'changing', series.clock_ms() - tonumber(company[3]) }
elseif not company[4] then
  return { 'none' }
end
index.add(ids, field, company[4], bucket)
redis.call('HSET', KEYS[2], 'claims', series.text(claims + 1))
return { 'claimed', company[4] }
