#!lua
-- settle.lua: drop from the outbox what the store has committed. Safe to repeat.
--
-- KEYS[1]  shard hash: epoch, generation, backlog        KEYS[2]  dirty set
-- KEYS[3]  series hash: at                KEYS[4]  outbox
-- ARGV[1]  epoch       ARGV[2]  generation               ARGV[3]  series id
-- ARGV[4]  position    ARGV[5]  k                        the record up to which, and with which, all are in the store
--
-- Replies {'stale'}, {'damaged', what}, or {'ok', records dropped, records left}.
--
-- The item of a run (allocate.lua) stays until the last of its entries is settled, while entries are counted as dropped
-- by their positions. Of skips and voids each has an item: `notes` says how many there are, mostly none.

-- @include series.lua

local text = series.text

local shard = redis.call('HMGET', KEYS[1], 'epoch', 'generation', 'backlog')
if shard[1] ~= ARGV[1] or shard[2] ~= ARGV[2] then
  return { 'stale' }
end
local upto, upto_k = tonumber(ARGV[4]), tonumber(ARGV[5])
local at = redis.call('HGET', KEYS[3], 'at')
if not at then
  return { 'damaged', 'the series hash is missing' }
end
local position, k, before, items, notes, claims, time, number, before_k = series.unpack_at(at)
if upto > position or (upto == position and upto_k > k) then
  local place = text(position) .. '-' .. text(k)
  return { 'damaged', 'the store is at ' .. ARGV[4] .. '-' .. ARGV[5] .. ', beyond ' .. place }
end
local length = redis.call('XLEN', KEYS[4])
local dirty = redis.call('SCARD', KEYS[2])
if length ~= items or (length > 0 and dirty == 0) then
  return { 'damaged', 'the outbox holds ' .. length .. ' items instead of ' .. items }
end

local settled, settled_k, notes_left = before, before_k, notes
if upto > before or (upto == before and upto_k > before_k) then
  settled, settled_k = upto, upto_k
end
if notes > 0 then
  for _, item in ipairs(redis.call('XRANGE', KEYS[4], '-', ARGV[4] .. '-' .. ARGV[5])) do
    notes_left = notes_left - (string.sub(item[1], -2) == '-0' and 0 or 1)
  end
end
local dropped, left = settled - before + notes - notes_left, position - settled + notes_left

items = length - redis.call('XTRIM', KEYS[4], 'MINID', '=', ARGV[4] .. '-' .. text(upto_k + 1))
redis.call('HSET', KEYS[3], 'at',
  series.pack_at(position, k, settled, items, notes_left, claims, time, number, settled_k))
redis.call('HSET', KEYS[1], 'backlog', text(tonumber(shard[3]) - dropped))
if items == 0 then
  redis.call('DEL', KEYS[4])
  redis.call('SREM', KEYS[2], ARGV[3])
end
return { 'ok', dropped, left }
