#!lua
-- skip.lua: raise a counter, so that its next number is a given one. What is left out is recorded, with the reason.
--
-- KEYS[1]  shard hash      KEYS[2]  hash of the shard's series      KEYS[3]  outbox
-- KEYS[4]  what the keys of the series begin with (allocate.lua)
-- ARGV[1]  epoch           ARGV[2]  generation     ARGV[3]  how many records the shard's outbox may hold
-- ARGV[4]  msgpack: {series id, version, rules, rendering}, the rendering of today, as in allocate.lua
-- ARGV[5]  the counter's field, one of the rendering's          ARGV[6]  the number that is to be next
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
-- @include note.lua

local text = series.text

-- Raises a counter. Answers whether it is one that the last entry raised.
local function raise(state, field, last)
  local nth = series.at_hand(state, field)
  if nth then
    state.values[nth] = last
  else
    state.aside = { [field] = last }
  end
  return nth ~= nil
end

local function skip(state, rules, rendering)
  local field, wanted = ARGV[5], tonumber(ARGV[6])
  local following = series.last(state, field, rules) + 1
  if wanted == following then
    return 0, { 'next', text(wanted) }
  elseif wanted < following then
    return 0, { 'lowers', text(following) }
  elseif state.shard.backlog >= tonumber(ARGV[3]) then
    return 0, { 'backlog' }
  end
  local at_hand = raise(state, field, wanted - 1)
  local values, refused = series.count(state, rendering, rules, 1)
  if not values then
    return 0, refused
  end
  local turned_dirty
  turned_dirty, refused = note.append(state, KEYS[2],
    { 'skip', field, following, wanted - 1, state.now, ARGV[7], ARGV[8] })
  if refused then
    return 0, refused
  elseif not at_hand then
    redis.call('HSET', state.prefix .. ':counters', field, text(wanted - 1))
  end
  return turned_dirty, { 'skipped', state.position, state.k, field, text(following), text(wanted - 1), state.now }
end

local shard, word, reason = series.enter(KEYS[1], KEYS[3], ARGV[1], ARGV[2])
if not shard then
  return { word, reason or 0, {}, {} }
end
local clock_ms, turned_dirty = series.clock_ms(), 0
local name, version, rules, rendering = unpack(cmsgpack.unpack(ARGV[4]))
local state, reply = series.read(shard, name, KEYS[4], redis.call('HGET', KEYS[2], name), clock_ms)
if state then
  reply = series.refusal(state, version, rules)
  if not reply then
    turned_dirty, reply = skip(state, rules, rendering)
  end
end
return { 'ok', clock_ms, { turned_dirty }, { reply } }
