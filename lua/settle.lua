#!lua
-- settle.lua: drop from the outbox what the store has committed. Safe to repeat.
--
-- KEYS[1]  shard hash: epoch, generation, backlog        KEYS[2]  dirty set
-- KEYS[3]  series hash: pos, k, done, items, notes     KEYS[4]  outbox
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
local upto, k = tonumber(ARGV[4]), tonumber(ARGV[5])
local known = redis.call('HMGET', KEYS[3], 'pos', 'done', 'items', 'k', 'notes')
if not known[1] then
  return { 'damaged', 'the series hash is missing' }
elseif upto > tonumber(known[1]) or (upto == tonumber(known[1]) and k > tonumber(known[4])) then
  return { 'damaged', 'the store is at ' .. ARGV[4] .. '-' .. ARGV[5] .. ', beyond ' .. known[1] .. '-' .. known[4] }
end
local length = redis.call('XLEN', KEYS[4])
local dirty = redis.call('SCARD', KEYS[2])
if length ~= tonumber(known[3]) or (length > 0 and dirty == 0) then
  return { 'damaged', 'the outbox holds ' .. length .. ' items instead of ' .. known[3] }
end

local position, before, notes = tonumber(known[1]), tonumber(known[2]), 0
if known[5] ~= '0' then
  for _, item in ipairs(redis.call('XRANGE', KEYS[4], '-', ARGV[4] .. '-' .. ARGV[5])) do
    notes = notes + (string.sub(item[1], -2) == '-0' and 0 or 1)
  end
end
local settled, notes_left = math.max(upto, before), tonumber(known[5]) - notes
local dropped, left = settled - before + notes, position - settled + notes_left

local items = length - redis.call('XTRIM', KEYS[4], 'MINID', '=', ARGV[4] .. '-' .. text(k + 1))
redis.call('HSET', KEYS[3], 'done', text(settled), 'items', text(items), 'notes', text(notes_left))
redis.call('HSET', KEYS[1], 'backlog', text(tonumber(shard[3]) - dropped))
if items == 0 then
  redis.call('DEL', KEYS[4])
  redis.call('SREM', KEYS[2], ARGV[3])
end
return { 'ok', dropped, left }
