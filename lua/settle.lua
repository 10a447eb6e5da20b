#!lua
-- settle.lua: drop from outboxes of a shard what the store has committed. Safe to repeat.
--
-- KEYS[1]  shard hash: epoch, generation, backlog        KEYS[2]  dirty set
-- KEYS[3..]  for each series: its hash (at), its outbox
-- ARGV[1]  epoch       ARGV[2]  generation
-- ARGV[3..]  for each series: its id; position and k of the record up to which, and with which, all are in the store
--
-- Replies {'stale'}, {'damaged', id, what} when one series is, and nothing was dropped, or {'ok', {records left, ...}}.
--
-- The item of a run (allocate.lua) stays until the last of its entries is settled, while entries are counted as dropped
-- by their positions. Of skips and voids each has an item: `notes` says how many there are, mostly none.

-- @include series.lua

local text = series.text

local shard = redis.call('HMGET', KEYS[1], 'epoch', 'generation', 'backlog')
if shard[1] ~= ARGV[1] or shard[2] ~= ARGV[2] then
  return { 'stale' }
end
local dirty = redis.call('SCARD', KEYS[2])

-- A series as it will be; or nothing, and what is wrong with it.
local function read(key, outbox, upto, upto_k)
  local at = redis.call('HGET', key, 'at')
  if not at then
    return nil, 'the series hash is missing'
  end
  local position, k, before, items, notes, claims, time, number, before_k = series.unpack_at(at)
  local place = text(upto) .. '-' .. text(upto_k)
  if upto > position or (upto == position and upto_k > k) then
    return nil, 'the store is at ' .. place .. ', beyond ' .. text(position) .. '-' .. text(k)
  end
  local length = redis.call('XLEN', outbox)
  if length ~= items or (length > 0 and dirty == 0) then
    return nil, 'the outbox holds ' .. length .. ' items instead of ' .. items
  end
  local settled, settled_k, notes_left = before, before_k, notes
  if upto > before or (upto == before and upto_k > before_k) then
    settled, settled_k = upto, upto_k
  end
  if notes > 0 then
    for _, item in ipairs(redis.call('XRANGE', outbox, '-', place)) do
      notes_left = notes_left - (string.sub(item[1], -2) == '-0' and 0 or 1)
    end
  end
  return { key = key, outbox = outbox, position = position, k = k, settled = settled, settled_k = settled_k,
    items = items, notes = notes_left, claims = claims, now = time, number = number,
    first = text(upto) .. '-' .. text(upto_k + 1), dropped = settled - before + notes - notes_left }
end

local states = {}
for i = 1, (#KEYS - 2) / 2 do
  local id, upto, upto_k = ARGV[3 * i], tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
  local state, what = read(KEYS[2 * i + 1], KEYS[2 * i + 2], upto, upto_k)
  if not state then
    return { 'damaged', id, what }
  end
  state.id, states[i] = id, state
end

local left, dropped = {}, 0
for i, state in ipairs(states) do
  state.items = state.items - redis.call('XTRIM', state.outbox, 'MINID', '=', state.first)
  redis.call('HSET', state.key, 'at', series.at(state))
  if state.items == 0 then
    redis.call('DEL', state.outbox)
    redis.call('SREM', KEYS[2], state.id)
  end
  left[i], dropped = state.position - state.settled + state.notes, dropped + state.dropped
end
redis.call('HSET', KEYS[1], 'backlog', text(tonumber(shard[3]) - dropped))
return { 'ok', left }
