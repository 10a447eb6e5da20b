#!lua
-- void.lua: record that an entry is void. Its number stays used; the first reason stays.
--
-- KEYS[1]  shard hash      KEYS[2]  dirty set      KEYS[3]  series hash      KEYS[4]  outbox
-- KEYS[5]  prefix of the id index; with ':voids' behind it, the hash of voided positions, which never expires
-- ARGV[1]  epoch           ARGV[2]  generation     ARGV[3]  how many records the shard's outboxes may hold
-- ARGV[4]  series id       ARGV[5]  the entry's 16 bytes of id              ARGV[6]  reason     ARGV[7]  actor
--
-- Replies {call, now ms, {shard turned dirty (1 or 0)}, {reply}}, where call is 'ok', 'lost', 'stale' or 'halted' as in
-- allocate.lua; and reply is one of
--   {'voided', position of the entry, void}    msgpack {position, k, created ms, reason, actor}, now or before
--   {'unknown'}                there is no entry with this id
--   {'unloaded'}, {'backlog'}, {'damaged', what}               as in allocate.lua

-- @include index.lua
-- @include series.lua

local text = series.text

local function void(state, backlog)
  local ids = index.open(state.prefix, state.position)
  local value = index.find(ids, ARGV[5])
  if not value then
    return 0, index.is_whole(ids) and { 'unknown' } or { 'damaged', 'a bucket of the id index is missing' }
  end
  local _, position = index.unpack(value)
  local known = redis.call('HGET', state.prefix .. ':voids', text(position))
  if known then
    return 0, { 'voided', position, known }
  elseif backlog >= tonumber(ARGV[3]) then
    return 0, { 'backlog' }
  end
  local packed = cmsgpack.pack({ state.position, state.k + 1, state.now, ARGV[6], ARGV[7] })
  local turned_dirty = series.append(state, KEYS[1], KEYS[2], backlog, ARGV[4],
    { 'w', 'void', 'v', text(position), 'r', ARGV[6], 'u', ARGV[7], 't', text(state.now) })
  redis.call('HSET', state.prefix .. ':voids', text(position), packed)
  return turned_dirty, { 'voided', position, packed }
end

local backlog, word, reason = series.enter(KEYS[1], ARGV[1], ARGV[2])
if not backlog then
  return { word, reason or 0, {}, {} }
end
local clock_ms = series.clock_ms()
local state, refused = series.read(KEYS[3], KEYS[4], KEYS[5], clock_ms, {})
if refused then
  return { 'ok', clock_ms, { 0 }, { refused } }
end
local turned_dirty, reply = void(state, backlog)
return { 'ok', clock_ms, { turned_dirty }, { reply } }
