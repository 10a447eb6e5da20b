#!lua
-- allocate.lua: issue the next numbers of some series, or answer with what was issued before.
--
-- One call carries the requests of many callers, each answered for itself; or it is a batch, all or nothing.
-- Everything is checked before the first write, so that a refusal, a wrong type or a full memory leaves every key as
-- it was.
--
-- KEYS[1..]     for shard s = 1, 2, ...: its hash (epoch, generation, backlog; halted when allocation is stopped) and
--               its dirty set, ids of the series whose outbox holds records;
--               then for group i = 1, 2, ...: its series hash, its outbox stream, the prefix of its id index
--               (index.lua) and, with ':voids' behind it, of the hash of its voided positions (void.lua)
-- ARGV[1]       epoch
-- ARGV[2]       generation
-- ARGV[3]       how many records a shard's outboxes may hold
-- ARGV[4]       '1' when the call is a batch: one refused request refuses all
-- ARGV[5]       msgpack: {number of shards, list of rules, list of renderings}; those that groups or requests share are
--               in the lists once
--               rules       {from ms, until ms, today, strict, digits_max, first}: the local day for which the
--                           renderings hold, whether dates must not go back, how many digits a code may have, and
--                           what counters begin with in the series' first periods
--               rendering   {date, fields, counted, padding, claimed, kept}: the series' format for a date. A field is
--                           a counter in its period; a code has the values of the fields that counted numbers, each
--                           with at least padding digits; claimed says that the requests came here because the series
--                           was their company's default; kept goes with their entries into the outbox as it is
-- ARGV[6]       the groups, one behind the other: the number of its shard (2 bytes) and of its rules (2 bytes), the
--               version of the caller's definition (a double), how many stretches it has (2 bytes), and then those: the
--               number of its rendering (2 bytes), how many requests it has (2 bytes), and then those:
--               the id (16 bytes), the fingerprint of the payload (8 bytes), and behind their length (4 bytes) the
--               client's signature or '', a NUL, and meta as canonical JSON or ''
--
-- Replies {call, now ms, {shard turned dirty (1 or 0), ...}, {request, ...}, {head, ...}}; call is
--   'ok'        the requests are answered. The heads are those of the runs that hold all that was issued, in this order
--   'lost'      a shard hash is missing
--   'stale'     the caller's epoch or generation is not a shard's
--   'halted'    allocation is stopped; the second element is the reason
-- and a request is one of
--   position                   issued; when a batch is refused there are no heads, and it was not
--   {'twin'}                   issued to a request before in this call, with the same id and payload
--   {'replayed', position, void or '', head, request, id before or ''}     issued before, and the outbox has it: in a
--                              run with this head, behind an entry with this id, unless it is the first there
--   {'settled', position, void or ''}      issued before, and the store has it
--   {'conflict'}               issued before with another payload
--   {'unloaded'}               the series is not loaded
--   {'changing', for ms}     its definition is being changed
--   {'version', version}       the caller's definition is not the current one
--   {'inactive'}               the series is deactivated
--   {'window', now ms}         the series' now lies outside the day that the renderings hold for: the clock's time, or
--                              that of its last record where the clock has been set back behind it
--   {'past', date}             the series is strict, and its last entry has this later date
--   {'future', today}          the series is strict, and the date is after today
--   {'exhausted'}              a counter has reached 2^53 - 1
--   {'overflow', digits}       the counters have more digits than max_length leaves them
--   {'backlog'}                the shard's outboxes are full
--   {'damaged', what}          keys of the series contradict one another

-- The entries that a call issues in a series go into the outbox as runs: an item whose id is the position of its last
-- entry, with k = 0. Its field e has up to RUN_MAX requests as they came, which followed one another in a stretch;
-- where the next numbers may be one too many, one alone. Its field h, the head, has the position of the first entry and
-- the time in ms (doubles), the number of entries (2 bytes), the bytes of the id before it (1 byte) and the number of
-- fields (1 byte); then the first entry's values of the fields (doubles), that id, and what the rendering keeps. Each
-- entry raises all of its fields by one.

-- @include index.lua
-- @include series.lua

local text, call, format, sub = series.text, redis.call, string.format, string.sub
local unpack_struct, pack_struct = struct.unpack, struct.pack
local RUN_MAX, HEAD = 32, '>ddI2I1I1'
local ACCEPTED = { twin = true, replayed = true, settled = true }

local clock_ms = series.clock_ms()
local atomic, requests = ARGV[4] == '1', ARGV[6]
local shard_count, all_rules, renderings = unpack(cmsgpack.unpack(ARGV[5]))

-- The shards as they stand; or nothing, and the reply that refuses the call.
local function enter()
  local shards = {}
  for k = 1, 2 * shard_count, 2 do
    local backlog, word, reason = series.enter(KEYS[k], ARGV[1], ARGV[2])
    if not backlog then
      return nil, { word, reason or 0, {}, {}, {} }
    end
    shards[#shards + 1] = { key = KEYS[k], dirty = KEYS[k + 1], backlog = backlog, room = tonumber(ARGV[3]) - backlog,
      was_dirty = call('SCARD', KEYS[k + 1]) > 0, issued = 0, ids = {} }
  end
  return shards
end

-- The series of a group as it stands; `rendering` is that of its first request, whose reply will be the nth.
local function read_state(k, shard, version, rules, rendering, nth)
  local state, refused = series.read(KEYS[k], KEYS[k + 1], KEYS[k + 2], clock_ms, rendering[2])
  if not state then
    return nil, refused
  end
  state.shard, state.rules, state.first, state.closed = shard, rules, nth, series.refusal(state, version, rules)
  state.ids = index.open(state.prefix, state.position)
  state.runs, state.new, state.fresh = {}, {}, {}
  return state
end

local function replay(state, id, position, fingerprint, known)
  if fingerprint ~= known then
    return { 'conflict' }
  end
  local void = call('HGET', state.prefix .. ':voids', text(position)) or ''
  if position <= state.settled then
    return { 'settled', position, void }
  end
  local head, request, before = series.entry(state.outbox, position, id)
  if not head then
    return { 'damaged', 'entry ' .. text(position) .. ' is neither in the outbox nor settled' }
  end
  return { 'replayed', position, void, head, request, before }
end

-- Why a request with a new id is refused, if it is.
local function refusal(state, date)
  local rules = state.rules
  if state.closed then
    return state.closed
  elseif not state.active then
    return { 'inactive' }
  elseif rules[4] and date < state.last_date then
    return { 'past', state.last_date }
  elseif rules[4] and date > rules[3] then
    return { 'future', rules[3] }
  elseif state.shard.room <= 0 then
    return { 'backlog' }
  end
end

-- Ends the run at hand: its counters have come as far as its last entry.
local function finish(state)
  local run = state.run
  if not run then
    return
  end
  local fields, values, raise = run.rendering[2], run.values, run.count - 1
  for i = 1, #fields do
    state.raised[fields[i]] = values[i] + raise
  end
  state.number = values[1] + raise
  state.claims = state.claims + (run.rendering[5] and run.count or 0)
  state.run = nil
end

-- Begins a run with the request at `from`. Answers it; or nothing, and why there are no more numbers.
local function begin(state, rendering, from)
  finish(state)
  local values, refused = series.count(state, rendering, state.rules)
  if not values then
    return nil, refused
  end
  local run = { rendering = rendering, values = values, first = state.position + state.count + 1, count = 0,
    most = series.beyond(rendering, state.rules, values, RUN_MAX - 1) and 1 or RUN_MAX,
    previous = state.new[state.count] or state.last_id, from = from, to = from - 1 }
  state.runs[#state.runs + 1], state.run, state.last_date = run, run, rendering[1]
  return run
end

-- Issues the next number for a request: the bytes `from` to `to` of all of them.
local function issue(state, rendering, id, fingerprint, from, to)
  local run, refused = state.run
  if not run or run.to ~= from - 1 or run.rendering ~= rendering or run.count == run.most then
    run, refused = begin(state, rendering, from)
  end
  if not run then
    return refused
  end
  local nth, shard = state.count + 1, state.shard
  run.count, run.to = run.count + 1, to
  state.count, state.new[nth], state.fresh[id] = nth, id, fingerprint
  shard.room = shard.room - 1
  return state.position + nth
end

local function answer(state, rendering, id, fingerprint, from, to)
  local twin = state.fresh[id]
  if twin then
    return twin == fingerprint and { 'twin' } or { 'conflict' }
  end
  local value = index.find(state.ids, id)
  if value then
    local known, position = index.unpack(value)
    return replay(state, id, position, fingerprint, known)
  end
  return refusal(state, rendering[1]) or issue(state, rendering, id, fingerprint, from, to)
end

-- Forgets the counters of periods that are over: dates of a strict series do not go back to them. A later period may
-- have been raised by a skip already; the names of periods sort by time.
local function forget(state)
  for field in pairs(state.raised) do
    local counter = not state.counters[field] and string.match(field, '^%a+:')
    if counter then
      for _, old in ipairs(call('HKEYS', state.key)) do
        if sub(old, 1, #counter) == counter and old < field and not state.raised[old] then
          call('HDEL', state.key, old)
        end
      end
    end
  end
end

local function head_of(state, run)
  local values = run.values
  return pack_struct(HEAD .. string.rep('d', #values), run.first, state.now, run.count, #run.previous, #values,
    unpack(values)) .. run.previous .. run.rendering[6]
end

-- Adds the runs to the outbox, and their heads to `heads`.
local function append(state, heads)
  local runs = state.runs
  for i = 1, #runs do
    local run = runs[i]
    local head = head_of(state, run)
    heads[#heads + 1] = head
    local last = format('%d-0', run.first + run.count - 1)
    call('XADD', state.outbox, last, 'h', head, 'e', sub(requests, run.from, run.to))
  end
  state.items = state.items + #runs
end

local function write(state, heads)
  finish(state)
  append(state, heads)
  local ids, new, fresh = state.ids, state.new, state.fresh
  for i = 1, state.count do
    index.add(ids, new[i], index.pack(fresh[new[i]], state.position + i))
  end
  state.position, state.k = state.position + state.count, 0
  local changes = { 'at', series.at(state), 'last', state.last_date .. new[state.count] }
  for field, value in pairs(state.raised) do
    changes[#changes + 1], changes[#changes + 2] = field, text(value)
  end
  if state.rules[4] then
    forget(state)
  end
  index.call_sliced('HSET', state.key, changes)
end

-- Notes in the shards what is about to be written, and tells of each whether it turns dirty. Before the records: should
-- the server refuse one of them after all, then what was written is still found.
local function mark(shards, states)
  for i = 1, #states do
    local state = states[i]
    local shard = state.shard
    shard.issued, shard.ids[#shard.ids + 1] = shard.issued + state.count, sub(state.key, -36)
  end
  local turned_dirty = {}
  for s, shard in ipairs(shards) do
    if shard.issued > 0 then
      call('HSET', shard.key, 'backlog', text(shard.backlog + shard.issued))
      index.call_sliced('SADD', shard.dirty, shard.ids)
    end
    turned_dirty[s] = (shard.issued > 0 and not shard.was_dirty) and 1 or 0
  end
  return turned_dirty
end

-- Those of the series that issue numbers. Where an index is not whole, or cannot grow, all requests are refused.
local function issuing(states, replies)
  local indexes, found = {}, {}
  for i = 1, #states do
    indexes[i] = states[i].ids
  end
  local whole = index.is_whole(unpack(indexes))
  for i = 1, #states do
    local state = states[i]
    if not ((whole or index.is_whole(state.ids)) and index.can_grow(state.ids, state.position + state.count)) then
      for nth = state.first, state.last do
        replies[nth] = { 'damaged', 'a bucket of the id index is missing, or in the way' }
      end
    elseif state.count > 0 then
      found[#found + 1] = state
    end
  end
  return found
end

local function refuses_any(replies)
  for _, reply in ipairs(replies) do
    if type(reply) == 'table' and not ACCEPTED[reply[1]] then
      return true
    end
  end
  return false
end

local shards, refused_call = enter()
if not shards then
  return refused_call
end

local replies, states, at = {}, {}, 1
for k = 2 * shard_count + 1, #KEYS, 3 do
  local s, r, version, stretches, from = unpack_struct('>I2I2dI2', requests, at)
  local state, refused
  for _ = 1, stretches do
    local nth, count, begins = unpack_struct('>I2I2', requests, from)
    local rendering = renderings[nth]
    from = begins
    if not state and not refused then
      state, refused = read_state(k, shards[s], version, all_rules[r], rendering, #replies + 1)
    end
    for _ = 1, count do
      local id, fingerprint, bytes, rest = unpack_struct('>c16c8I4', requests, from)
      replies[#replies + 1] = refused or answer(state, rendering, id, fingerprint, from, rest + bytes - 1)
      from = rest + bytes
    end
  end
  at = from
  if state then
    state.last = #replies
    states[#states + 1] = state
  end
end

states = issuing(states, replies)
if atomic and refuses_any(replies) then
  states = {}
end
local turned_dirty, heads = mark(shards, states), {}
for _, state in ipairs(states) do
  write(state, heads)
end
return { 'ok', clock_ms, turned_dirty, replies, heads }
