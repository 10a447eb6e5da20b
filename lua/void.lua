#!lua
-- void.lua: record that an entry is void. Its number stays used; the first reason stays.
--
-- KEYS[1]  shard hash      KEYS[2]  hash of the shard's series      KEYS[3]  outbox
-- KEYS[4]  what the keys of the series begin with (allocate.lua): its index of ids, and its voided positions, in a hash
--          that never expires
-- ARGV[1]  epoch           ARGV[2]  generation     ARGV[3]  how many records the shard's outbox may hold
-- ARGV[4]  series id       ARGV[5]  the entry's 16 bytes of id              ARGV[6]  reason     ARGV[7]  actor
--
-- Replies {call, now ms, {shard turned dirty (1 or 0)}, {reply}}, where call is 'ok', 'lost', 'stale' or 'halted' as in
-- allocate.lua; and reply is one of
--   {'voided', position of the entry, void}    msgpack {position, k, created ms, reason, actor}, now or before
--   {'unknown'}                there is no entry with this id
--   {'unloaded'}, {'backlog'}, {'damaged', what}               as in allocate.lua

-- @include index.lua
-- @include series.lua
-- @include note.lua

local text = series.text

local function void(state)
  local ids = index.open(state.prefix, state.position)
  local value = index.find(ids, ARGV[5])
  if not value then
    return 0, not ids.lost and { 'unknown' } or { 'damaged', 'a bucket of the id index is missing' }
  end
  local _, position = index.unpack(value)
  local known = redis.call('HGET', state.prefix .. ':voids', text(position))
  if known then
    return 0, { 'voided', position, known }
  elseif state.shard.backlog >= tonumber(ARGV[3]) then
    return 0, { 'backlog' }
  end
  local packed = cmsgpack.pack({ state.position, state.k + 1, state.now, ARGV[6], ARGV[7] })
  local turned_dirty, refused = note.append(state, KEYS[2], { 'void', position, state.now, ARGV[6], ARGV[7] })
  if refused then
    return 0, refused
  end
  redis.call('HSET', state.prefix .. ':voids', text(position), packed)
  return turned_dirty, { 'voided', position, packed }
end

local shard, word, reason = series.enter(KEYS[1], KEYS[3], ARGV[1], ARGV[2])
if not shard then
  return { word, reason or 0, {}, {} }
end
local clock_ms, turned_dirty = series.clock_ms(), 0
local state, reply = series.read(shard, ARGV[4], KEYS[4], redis.call('HGET', KEYS[2], ARGV[4]), clock_ms)
if state then
  turned_dirty, reply = void(state)
end
return { 'ok', clock_ms, { turned_dirty }, { reply } }
