#!lua
-- settle.lua: drop from the outbox what the store has committed. Safe to repeat.
--
-- KEYS[1]  shard hash: epoch, generation, backlog        KEYS[2]  dirty set
-- KEYS[3]  series hash: position, after, settled, records     KEYS[4]  outbox
-- ARGV[1]  epoch       ARGV[2]  generation               ARGV[3]  series id
-- ARGV[4]  position    ARGV[5]  k                        the record up to which, and with which, all are in the store
--
-- Replies {'stale'}, {'damaged', what}, or {'ok', records dropped, records left}.

-- @include series.lua

local text = series.text

local shard = redis.call('HMGET', KEYS[1], 'epoch', 'generation', 'backlog')
if shard[1] ~= ARGV[1] or shard[2] ~= ARGV[2] then
  return { 'stale' }
end
local upto, k = tonumber(ARGV[4]), tonumber(ARGV[5])
local known = redis.call('HMGET', KEYS[3], 'position', 'settled', 'records', 'after')
if not known[1] then
  return { 'damaged', 'the series hash is missing' }
elseif upto > tonumber(known[1]) or (upto == tonumber(known[1]) and k > tonumber(known[4])) then
  return { 'damaged', 'the store is at ' .. ARGV[4] .. '-' .. ARGV[5] .. ', beyond ' .. known[1] .. '-' .. known[4] }
end
local length = redis.call('XLEN', KEYS[4])
local dirty = redis.call('SCARD', KEYS[2])
if length ~= tonumber(known[3]) or (length > 0 and dirty == 0) then
  return { 'damaged', 'the outbox holds ' .. length .. ' records instead of ' .. known[3] }
end

local dropped = redis.call('XTRIM', KEYS[4], 'MINID', '=', text(upto) .. '-' .. text(k + 1))
local left = length - dropped
redis.call('HSET', KEYS[3], 'settled', text(math.max(upto, tonumber(known[2]))), 'records', text(left))
redis.call('HSET', KEYS[1], 'backlog', text(tonumber(shard[3]) - dropped))
if left == 0 then
  redis.call('DEL', KEYS[4])
  redis.call('SREM', KEYS[2], ARGV[3])
end
return { 'ok', dropped, left }
