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
--               rendering   {date, fields, code, counted, literal, claimed, kept}: the series' format for a date. A
--                           field is a counter in its period; code writes a code (string.format) from the fields that
--                           counted numbers, and literal bytes of it are no digits of theirs; claimed says that the
--                           requests came here because the series was their company's default; kept goes with their
--                           entries into the outbox as it is
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

local text, call = series.text, redis.call
local unpack_struct, pack_struct, sub = struct.unpack, struct.pack, string.sub
local RUN_MAX, HEAD = 32, '>ddI2I1I1'
local ACCEPTED = { twin = true, replayed = true, settled = true }

local clock_ms = series.clock_ms()
local atomic = ARGV[4] == '1'
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

-- The series of a group as it stands; `first` is the rendering of its first request.
local function read_state(k, shard, version, rules, first)
  local state, refused = series.read(KEYS[k], KEYS[k + 1], KEYS[k + 2], clock_ms, first[2])
  if not state then
    return nil, refused
  end
  state.shard, state.rules, state.strict = shard, rules, rules[4]
  state.closed = series.refusal(state, version, rules)
  state.ids, state.read = index.open(state.prefix, state.position), { [first] = true }
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
  if state.closed then
    return state.closed
  elseif not state.active then
    return { 'inactive' }
  elseif state.strict and date < state.last_date then
    return { 'past', state.last_date }
  elseif state.strict and date > state.rules[3] then
    return { 'future', state.rules[3] }
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
  for i, field in ipairs(run.rendering[2]) do
    state.raised[field] = run.values[i] + run.count - 1
  end
  state.number = run.values[1] + run.count - 1
  state.claims = state.claims + (run.rendering[6] and run.count or 0)
  state.run = nil
end

-- Begins a run with the request at `from`. Answers nothing; or why there are no more numbers.
local function begin(state, rendering, from)
  finish(state)
  if not state.read[rendering] then
    series.read_more(state, rendering[2])
    state.read[rendering] = true
  end
  local values, refused = series.count(state, rendering, state.rules)
  if not values then
    return refused
  end
  state.run = { rendering = rendering, values = values, first = state.position + state.count + 1, count = 0,
    previous = state.new[state.count] or state.last_id, from = from, to = from - 1 }
  state.runs[#state.runs + 1], state.last_date = state.run, rendering[1]
end

-- How many entries a run may have.
local function most(state, run)
  local values = {}
  for i, value in ipairs(run.values) do
    values[i] = value + RUN_MAX - 1
  end
  return series.beyond(run.rendering, state.rules, values) and 1 or RUN_MAX
end

-- Whether a run goes on with the request at `from`.
local function goes_on(state, run, rendering, from)
  if not run or run.to ~= from - 1 or run.rendering ~= rendering then
    return false
  elseif not run.most then
    run.most = most(state, run)
  end
  return run.count < run.most
end

-- Issues the next number for a request: the bytes `from` to `to` of all of them.
local function issue(state, rendering, id, fingerprint, from, to)
  local run = state.run
  if not goes_on(state, run, rendering, from) then
    local refused = begin(state, rendering, from)
    if refused then
      return refused
    end
    run = state.run
  end
  local nth = state.count + 1
  run.count, run.to = run.count + 1, to
  state.count, state.new[nth], state.fresh[id] = nth, id, fingerprint
  state.shard.room = state.shard.room - 1
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
    unpack(values)) .. run.previous .. run.rendering[7]
end

-- Adds the runs to the outbox, and their heads to `heads`.
local function append(state, heads)
  for _, run in ipairs(state.runs) do
    local head, last = head_of(state, run), run.first + run.count - 1
    heads[#heads + 1] = head
    call('XADD', state.outbox, text(last) .. '-0', 'h', head, 'e', sub(ARGV[6], run.from, run.to))
  end
  state.items = state.items + #state.runs
end

local function write(state, heads)
  finish(state)
  append(state, heads)
  for i, id in ipairs(state.new) do
    index.add(state.ids, id, index.pack(state.fresh[id], state.position + i))
  end
  state.position, state.k = state.position + state.count, 0
  local changes = { 'at', series.at(state), 'last', state.last_date .. state.new[state.count] }
  for field, value in pairs(state.raised) do
    changes[#changes + 1] = field
    changes[#changes + 1] = text(value)
  end
  if state.strict then
    forget(state)
  end
  index.call_sliced('HSET', state.key, changes)
end

-- Notes in the shards what is about to be written, and tells of each whether it turns dirty. Before the records: should
-- the server refuse one of them after all, then what was written is still found.
local function mark(shards, states)
  for _, state in ipairs(states) do
    local shard = state.shard
    shard.issued = shard.issued + state.count
    shard.ids[#shard.ids + 1] = sub(state.key, -36)
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

local shards, refused_call = enter()
if not shards then
  return refused_call
end

local replies, states, at, refused_any = {}, {}, 1, false
for k = 2 * shard_count + 1, #KEYS, 3 do
  local s, r, version, stretches, from = unpack_struct('>I2I2dI2', ARGV[6], at)
  local first, state, refused = #replies + 1, nil, nil
  for _ = 1, stretches do
    local nth, count, begins = unpack_struct('>I2I2', ARGV[6], from)
    from = begins
    if not state and not refused then
      state, refused = read_state(k, shards[s], version, all_rules[r], renderings[nth])
    end
    for _ = 1, count do
      local id, fingerprint, bytes, rest = unpack_struct('>c16c8I4', ARGV[6], from)
      local reply = refused or answer(state, renderings[nth], id, fingerprint, from, rest + bytes - 1)
      refused_any = refused_any or (type(reply) == 'table' and not ACCEPTED[reply[1]])
      replies[#replies + 1] = reply
      from = rest + bytes
    end
  end
  at = from
  if state and not index.can_grow(state.ids, state.position + state.count) then
    refused_any = true
    for i = first, #replies do
      replies[i] = { 'damaged', 'a bucket of the id index is missing, or in the way' }
    end
  elseif state and state.count > 0 then
    states[#states + 1] = state
  end
end

if atomic and refused_any then
  states = {}
end
local turned_dirty, heads = mark(shards, states), {}
for _, state in ipairs(states) do
  write(state, heads)
end
return { 'ok', clock_ms, turned_dirty, replies, heads }
