#!lua
-- skip.lua: raise a counter, so that its next number is a given one. What is left out is recorded, with the reason.
--
-- KEYS[1]  shard hash      KEYS[2]  dirty set      KEYS[3]  series hash      KEYS[4]  outbox
-- ARGV[1]  epoch           ARGV[2]  generation     ARGV[3]  how many records the shard's outboxes may hold
-- ARGV[4]  msgpack: {series id, version, rules, rendering}, the rendering of today, as in allocate.lua
-- ARGV[5]  which of the rendering's fields          ARGV[6]  the number that is to be next
-- ARGV[7]  reason          ARGV[8]  actor
--
-- Replies {call, now ms, {shard turned dirty (1 or 0)}, {reply}}, where call is 'ok', 'lost', 'stale' or 'halted' as in
-- allocate.lua; and reply is one of
--   {'skipped', position, k, field, from, to, created ms}    numbers from .. to are left out
--   {'next', next}             the counter stands there already: nothing was recorded
--   {'lowers', next}           the counter's next number is higher already
--   {'unloaded'}, {'changing', for ms}, {'version', version}, {'window', now ms}, {'backlog'},
--   {'damaged', what}, {'overflow', digits}, {'exhausted'}     as in allocate.lua

-- @include series.lua

local text = series.text

local function skip(state, backlog, id, rules, rendering)
  local field = rendering[2][tonumber(ARGV[5])]
  local last, wanted = series.last(state, field, rules), tonumber(ARGV[6])
  if wanted == last + 1 then
    return 0, { 'next', text(wanted) }
  elseif wanted <= last then
    return 0, { 'lowers', text(last + 1) }
  elseif backlog >= tonumber(ARGV[3]) then
    return 0, { 'backlog' }
  end
  state.raised[field] = wanted - 1
  local values, refused = series.count(state, rendering, rules)
  if not values then
    return 0, refused
  end
  local from, to, now = text(last + 1), text(wanted - 1), text(state.now)
  local turned_dirty = series.append(state, KEYS[1], KEYS[2], backlog, id,
    { 'w', 'skip', 'n', field, 'a', from, 'b', to, 'r', ARGV[7], 'u', ARGV[8], 't', now })
  redis.call('HSET', state.key, field, to)
  return turned_dirty, { 'skipped', state.position, state.k, field, from, to, state.now }
end

local backlog, word, reason = series.enter(KEYS[1], ARGV[1], ARGV[2])
if not backlog then
  return { word, reason or 0, {}, {} }
end
local clock_ms = series.clock_ms()
local id, version, rules, rendering = unpack(cmsgpack.unpack(ARGV[4]))
local state, refused = series.read(KEYS[3], KEYS[4], '', clock_ms, rendering[2])
if state then
  refused = series.refusal(state, version, rules)
end
if refused then
  return { 'ok', clock_ms, { 0 }, { refused } }
end
local turned_dirty, reply = skip(state, backlog, id, rules, rendering)
return { 'ok', clock_ms, { turned_dirty }, { reply } }
