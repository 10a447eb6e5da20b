#!lua
-- allocate.lua: issue the next numbers of some series, or answer with what was issued before.
--
-- One call carries the requests of many callers, each answered for itself; or it is a batch, all or nothing.
-- Everything is checked before the first write, so that a refusal, a wrong type or a full memory leaves every key as
-- it was.
--
-- KEYS[1..]     for shard s = 1, 2, ...: its hash (epoch, generation, backlog, written, settled; halted when allocation
--               is stopped), the hash of its series, its outbox stream, and what the keys begin with that a series has
--               for itself: behind this and the series' id its index of ids (index.lua); with ':voids' behind that the
--               hash of its voided positions (void.lua), and with ':counters' that of counters that are kept aside
-- ARGV[1]       epoch
-- ARGV[2]       generation
-- ARGV[3]       how many records a shard's outbox may hold
-- ARGV[4]       '1' when the call is a batch: one refused request refuses all
-- ARGV[5]       msgpack: {list of how many groups each shard has, list of rules, list of renderings}; those that groups
--               or requests share are in the lists once
--               rules       {from ms, until ms, today, strict, digits_max, first}: the local day for which the
--                           renderings hold, whether dates must not go back, how many digits a code may have, and
--                           what counters begin with in the series' first periods
--               rendering   {date, fields, counted, padding, claimed, kept}: the series' format for a date. A field is
--                           a counter in its period, each with a blank behind it but the last; a code has the values
--                           of the fields that counted numbers, each with at least padding digits; claimed says that
--                           the requests came here because the series was their company's default; kept goes with
--                           their entries into the outbox as it is
-- ARGV[6]       the groups, one behind the other, those of a shard together and the shards in their order: the number
--               of its rules (2 bytes), the version of the caller's definition (a double), how many stretches it has
--               (2 bytes), and then those: the number of its rendering (2 bytes), how many requests it has (2 bytes),
--               and then those: the id (16 bytes), the fingerprint of the payload (8 bytes), and behind their length
--               (4 bytes) the client's signature or '', a NUL, and meta as canonical JSON or ''
-- ARGV[7..]     the ids of the groups' series
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
--   {'settled', position, void or ''}      issued before, and not in the outbox: the store has to have it
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
--   {'backlog'}                the shard's outbox is full
--   {'damaged', what}          keys of the series, or of its shard, contradict one another

-- What a call issues in a shard goes into its outbox as items, whose ids are <n>-0 for n = 1, 2, ... An item has runs,
-- a pair of a head and requests each. A run has up to RUN_MAX entries of a series, with their requests as they came,
-- which followed one another in a stretch; where the next numbers may be one too many, one alone. A head has the id of
-- the series, the position of the first entry (a double), the k of the record before that (4 bytes), the time in ms and
-- the item before this one that has records of the series (doubles), the number of entries (2 bytes), the bytes of the
-- id before it (1 byte) and the number of fields (1 byte); then the first entry's values of the fields (doubles), that
-- id, and what the rendering keeps. Each entry raises all of its fields by one. An item is full with RUN_MAX entries;
-- skips and voids have items of their own (note.lua).

-- @include index.lua
-- @include series.lua

local text, call, sub, HEAD, REQUEST = series.text, redis.call, string.sub, series.HEAD, series.REQUEST
local unpack_struct, pack_struct = struct.unpack, struct.pack
local RUN_MAX, HEADS = 32, { HEAD .. 'd', HEAD .. 'dd', HEAD .. 'ddd', HEAD .. 'dddd' }
local ACCEPTED = { twin = true, replayed = true, settled = true }

local clock_ms = series.clock_ms()
local atomic, requests = ARGV[4] == '1', ARGV[6]
local counts, all_rules, renderings = unpack(cmsgpack.unpack(ARGV[5]))

-- What is issued, one behind the other: the ids, the fingerprints of their payloads, and the keys of the buckets that
-- they go into; and the last of them that has an id.
local new, fingerprints, buckets, nth_of = {}, {}, {}, {}

-- The shards as they stand, each with what the hash of its series has of those that are asked for; or nothing, and the
-- reply that refuses the call.
local function enter()
  local shards, n = {}, 7
  for s = 1, #counts do
    local k = 4 * s - 3
    local shard, word, reason = series.enter(KEYS[k], KEYS[k + 2], ARGV[1], ARGV[2])
    if not shard then
      return nil, { word, reason or 0, {}, {}, {} }
    end
    shard.states, shard.prefix, shard.room = KEYS[k + 1], KEYS[k + 3], tonumber(ARGV[3]) - shard.backlog
    shard.packed = call('HMGET', shard.states, unpack(ARGV, n, n + counts[s] - 1))
    shard.issuing, shard.runs, shard.issued = {}, {}, 0
    shards[s], n = shard, n + counts[s]
  end
  return shards
end

-- The series of a group as it stands, whose first request has the nth reply; or nothing, and the reply for all.
local function read(shard, name, packed, rules, version, nth)
  local state, refused = series.read(shard, name, shard.prefix .. name, packed, clock_ms)
  if not state then
    return nil, refused
  end
  state.rules, state.first, state.closed = rules, nth, series.refusal(state, version, rules)
  state.ids, state.before = index.open(state.prefix, state.position), #new
  return state
end

local function replay(state, id, position, left, fingerprint, known)
  if fingerprint ~= known then
    return { 'conflict' }
  end
  local shard, void = state.shard, call('HGET', state.prefix .. ':voids', text(position)) or ''
  local head, request, before =
    series.entry(shard.outbox, state.name, id, index.items(left, shard.settled, shard.written))
  if not head then
    return { 'settled', position, void }
  end
  return { 'replayed', position, void, head, request, before }
end

-- Why requests with new ids are refused, if they are, for a date.
local function refusal(state, date)
  local rules = state.rules
  if state.closed then
    return state.closed
  elseif state.on == 0 then
    return { 'inactive' }
  elseif rules[4] and date < state.date then
    return { 'past', state.date }
  elseif rules[4] and date > rules[3] then
    return { 'future', rules[3] }
  end
end

-- Ends the run at hand: its counters have come as far as its last entry.
local function finish(state)
  local run = state.run
  if not run then
    return
  end
  local values, raise = run.values, run.count - 1
  if raise > 0 then
    values = {}
    for i = 1, #run.values do
      values[i] = run.values[i] + raise
    end
  end
  state.values, state.number, state.count = values, values[1], state.count + run.count
  state.claims = state.claims + (run.rendering[5] and run.count or 0)
  state.run = nil
end

-- Takes a rendering's counters to hand, and puts aside those that were.
local function turn(state, names)
  local nth, aside = 0, state.aside or {}
  for field in string.gmatch(state.names, '%S+') do
    nth = nth + 1
    aside[field] = state.values[nth]
  end
  state.names, state.aside = names, aside
end

-- Begins a run with the request at `from`. Answers it; or nothing, and why there are no more numbers.
local function begin(state, rendering, from)
  finish(state)
  local values, most = series.count(state, rendering, state.rules, RUN_MAX)
  if not values then
    return nil, most
  end
  if rendering[2] ~= state.names then
    turn(state, rendering[2])
  end
  local count, runs = state.count, state.shard.runs
  local run = { state = state, rendering = rendering, values = values, first = state.position + count + 1, count = 0,
    most = most, k = count == 0 and state.k or 0, previous = count == 0 and state.id or new[#new], from = from,
    to = from - 1, item = 0, head = '' }
  runs[#runs + 1], state.run, state.date = run, run, rendering[1]
  return run
end

-- Issues the next number for a request: the bytes `from` to `to` of all of them.
local function issue(state, rendering, id, fingerprint, bucket, from, to)
  local run, shard, refused = state.run, state.shard
  if shard.room <= 0 then
    return { 'backlog' }
  end
  if not run or run.to ~= from - 1 or run.rendering ~= rendering or run.count == run.most then
    run, refused = begin(state, rendering, from)
  end
  if not run then
    return refused
  end
  local nth = #new + 1
  new[nth], fingerprints[nth], buckets[nth], nth_of[id] = id, fingerprint, bucket, nth
  run.count, run.to, shard.room = run.count + 1, to, shard.room - 1
  return run.first + run.count - 1
end

-- Answers a request; `closed` is why it is refused if its id is new.
local function answer(state, rendering, closed, id, fingerprint, from, to)
  local twin = nth_of[id]
  if twin and twin > state.before then
    return fingerprints[twin] == fingerprint and { 'twin' } or { 'conflict' }
  end
  local value, bucket = index.find(state.ids, id)
  if value then
    local known, position, left = index.unpack(value)
    return replay(state, id, position, left, fingerprint, known)
  end
  return closed or issue(state, rendering, id, fingerprint, bucket, from, to)
end

-- Whether a counter's period is over, as one of these fields is that counter in a later one. The names of periods sort
-- by time.
local function is_over(field, names)
  local counter = string.match(field, '^%a+:')
  for name in string.gmatch(names, '%S+') do
    if counter and sub(name, 1, #counter) == counter and field < name then
      return true
    end
  end
  return false
end

-- Keeps the counters of other periods aside. Those that are over are forgotten where dates do not go back to them; a
-- later period may have been raised by a skip already.
local function keep(state)
  local key, strict, kept, over = state.prefix .. ':counters', state.rules[4], {}, {}
  for field, value in pairs(state.aside) do
    if not series.at_hand(state, field) and not (strict and is_over(field, state.names)) then
      kept[#kept + 1], kept[#kept + 2] = field, text(value)
    end
  end
  index.call_sliced('HSET', key, kept)
  for _, old in ipairs(strict and call('HKEYS', key) or {}) do
    if is_over(old, state.names) then
      over[#over + 1] = old
    end
  end
  index.call_sliced('HDEL', key, over)
end

-- The head of a run that goes into its item.
local function head_of(run)
  local state, values = run.state, run.values
  if state.item < run.item then
    state.back, state.item = state.item, run.item
  end
  return pack_struct(HEADS[#values], state.name, run.first, run.k, state.now, state.back,
    run.count, #run.previous, #values, unpack(values)) .. run.previous .. run.rendering[6]
end

-- Adds what a shard's series issue to its outbox. Answers the reply that refuses all of it, if so, before anything is
-- written in the shard.
local function append(shard)
  local fields, entries, refused = {}, 0
  for i = 1, #shard.runs do
    local run = shard.runs[i]
    if entries > 0 and entries + run.count > RUN_MAX then
      refused = refused or series.add(shard, fields)
      fields, entries = {}, 0
    end
    run.item = shard.written + 1
    run.head = head_of(run)
    fields[#fields + 1], fields[#fields + 2] = run.head, sub(requests, run.from, run.to)
    entries = entries + run.count
  end
  return refused or series.add(shard, fields)
end

local function write(shard, heads)
  local changes = {}
  call('HSET', shard.key, 'backlog', text(shard.backlog + shard.issued), 'written', text(shard.written))
  for i = 1, #shard.runs do
    local run = shard.runs[i]
    local state, item = run.state, run.item
    local ids, ahead = state.ids, state.position - state.before
    heads[#heads + 1] = run.head
    for position = run.first, run.first + run.count - 1 do
      local nth = position - ahead
      index.add(ids, new[nth], index.pack(fingerprints[nth], position, item), buckets[nth])
    end
  end
  for i = 1, #shard.issuing do
    local state = shard.issuing[i]
    state.position, state.k, state.time = state.position + state.count, 0, state.now
    state.id = new[state.before + state.count]
    if state.aside then
      keep(state)
    end
    changes[#changes + 1], changes[#changes + 2] = state.name, series.pack(state)
  end
  index.call_sliced('HSET', shard.states, changes)
end

local function refuse(state, replies, reply)
  for nth = state.first, state.upto do
    replies[nth] = reply
  end
end

-- Ends the requests of a series: says in its shard that it issues numbers. Where its index has lost a bucket, or cannot
-- grow, all its requests are refused.
local function choose(state, replies)
  local shard, runs = state.shard, state.shard.runs
  finish(state)
  state.upto = #replies
  if not index.can_grow(state.ids, state.position + state.count) then
    refuse(state, replies, { 'damaged', 'a bucket of the id index is missing, or in the way' })
    while #runs > 0 and runs[#runs].state == state do
      runs[#runs] = nil
    end
  elseif state.count > 0 then
    shard.issuing[#shard.issuing + 1], shard.issued = state, shard.issued + state.count
  end
end

local function refuses_any(replies)
  for _, reply in ipairs(replies) do
    if type(reply) == 'table' and not ACCEPTED[reply[1]] then
      return true
    end
  end
  return false
end

-- Writes what the shards' series issue. Answers of each shard whether it has turned dirty, and the heads of all runs.
local function issue_all(shards, replies)
  local turned_dirty, heads = {}, {}
  for s, shard in ipairs(shards) do
    local refused = shard.issued > 0 and append(shard)
    turned_dirty[s] = (shard.issued > 0 and not refused and shard.backlog == 0) and 1 or 0
    if refused then
      for _, state in ipairs(shard.issuing) do
        refuse(state, replies, refused)
      end
    elseif shard.issued > 0 then
      write(shard, heads)
    end
  end
  return turned_dirty, heads
end

local shards, refused_call = enter()
if not shards then
  return refused_call
end

local replies, at, n = {}, 1, 7
for s, shard in ipairs(shards) do
  for i = 1, counts[s] do
    local r, version, stretches, from = unpack_struct('>I2dI2', requests, at)
    local state, refused = read(shard, ARGV[n], shard.packed[i], all_rules[r], version, #replies + 1)
    for _ = 1, stretches do
      local nth, count, begins = unpack_struct('>I2I2', requests, from)
      local rendering = renderings[nth]
      local closed = state and refusal(state, rendering[1])
      from = begins
      for _ = 1, count do
        local id, fingerprint, bytes, rest = unpack_struct(REQUEST, requests, from)
        replies[#replies + 1] = refused
          or answer(state, rendering, closed, id, fingerprint, from, rest + bytes - 1)
        from = rest + bytes
      end
    end
    if state then
      choose(state, replies)
    end
    at, n = from, n + 1
  end
end

if atomic and refuses_any(replies) then
  for _, shard in ipairs(shards) do
    shard.issued = 0
  end
end
local turned_dirty, heads = issue_all(shards, replies)
return { 'ok', clock_ms, turned_dirty, replies, heads }
