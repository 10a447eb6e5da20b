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
--               rendering   {date, fields, code, counted, literal, numbers, claimed}: the series' format
--                           for a date. A field is a counter in its period; code writes a code (string.format) from
--                           the fields that counted numbers, and literal bytes of it are no digits of theirs;
--                           numbers writes the values of all fields as the outbox keeps them; claimed says that the
--                           requests came here because the series was their company's default
-- ARGV[6]       the groups, one behind the other: the number of its shard (2 bytes) and of its rules (2 bytes), the
--               version of the caller's definition (a double), how many requests it has (2 bytes), and then those:
--               the id (16 bytes), the fingerprint of the payload (8 bytes), the number of its rendering (2 bytes), and
--               behind their length (4 bytes) the client's signature or '', a NUL, and meta as canonical JSON or ''
--
-- Replies {call, now ms, {shard turned dirty (1 or 0), ...}, {request, ...}, {run, ...}}; call is
--   'ok'        the requests are answered. The runs hold the records of all requests that were issued, in this order
--   'lost'      a shard hash is missing
--   'stale'     the caller's epoch or generation is not a shard's
--   'halted'    allocation is stopped; the second element is the reason
-- and a request is one of
--   position                   issued: its record is the next in the runs; there are none when a batch is refused
--   {'replayed', position, record, void or ''}     issued before, and the outbox has it
--   {'settled', position, void or ''}      issued before, and the store has it
--   {'conflict', position}     issued before with another payload
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
-- entry, with k = 0, and whose one field, e, has the records of up to RUN_MAX entries, each behind its length (4
-- bytes). A record is an entry's id (16 bytes), fingerprint (8 bytes), and then, with NULs between, its time (ms),
-- date, numbers ('field=value;...', or the value alone when the format has just %inc%), code, 1 if claimed, signature,
-- meta, and the id of the entry before or nothing.

-- @include index.lua
-- @include series.lua

local text, call = series.text, redis.call
local unpack_struct, pack_struct, format, sub = struct.unpack, struct.pack, string.format, string.sub
local RUN_MAX = 32
local ACCEPTED = { replayed = true, settled = true }

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
  state.ids, state.before, state.now_text = index.open(state.prefix, state.position), state.position, text(state.now)
  state.read, state.records, state.fresh = { [first] = true }, {}, {}
  return state
end

local function replay(state, id, position, fingerprint, known)
  if fingerprint ~= known then
    return { 'conflict', position }
  end
  local void = call('HGET', state.prefix .. ':voids', text(position)) or ''
  if position <= state.settled then
    return { 'settled', position, void }
  end
  local record = series.record(state.outbox, position, id)
  if not record then
    return { 'damaged', 'entry ' .. text(position) .. ' is neither in the outbox nor settled' }
  end
  return { 'replayed', position, record, void }
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

local function issue(state, rendering, id, fingerprint, rest)
  if not state.read[rendering] then
    series.read_more(state, rendering[2])
    state.read[rendering] = true
  end
  local values, code = series.count(state, rendering, state.rules)
  if not values then
    return code
  end
  for i, field in ipairs(rendering[2]) do
    state.raised[field] = values[i]
  end
  local date, claimed, records = rendering[1], rendering[7], state.records
  records[#records + 1] = id .. fingerprint .. state.now_text .. '\0' .. date .. '\0'
    .. format(rendering[6], unpack(values)) .. '\0' .. code .. (claimed and '\0001\0' or '\0\0') .. rest .. '\0'
    .. state.last_id
  state.fresh[id] = #records
  state.position, state.number, state.last_id, state.last_date = state.position + 1, values[1], id, date
  state.claims = state.claims + (claimed and 1 or 0)
  state.shard.room = state.shard.room - 1
  return state.position
end

local function answer(state, rendering, id, fingerprint, rest)
  local twin = state.fresh[id]
  if twin then
    local record, position = state.records[twin], state.before + twin
    local same = sub(record, 17, 24) == fingerprint
    return same and { 'replayed', position, record, '' } or { 'conflict', position }
  end
  local value = index.find(state.ids, id)
  if value then
    local known, position = index.unpack(value)
    return replay(state, id, position, fingerprint, known)
  end
  return refusal(state, rendering[1]) or issue(state, rendering, id, fingerprint, rest)
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

-- Adds the entries to the outbox, and the runs that they make to `runs`.
local function append(state, runs)
  local records = state.records
  for first = 1, #records, RUN_MAX do
    local last, run = math.min(first + RUN_MAX - 1, #records), {}
    for i = first, last do
      run[#run + 1] = pack_struct('>I4', #records[i])
      run[#run + 1] = records[i]
    end
    runs[#runs + 1] = table.concat(run)
    call('XADD', state.outbox, text(state.before + last) .. '-0', 'e', runs[#runs])
    state.items = state.items + 1
  end
end

local function write(state, runs)
  append(state, runs)
  for i, record in ipairs(state.records) do
    index.add(state.ids, sub(record, 1, 16), index.pack(sub(record, 17, 24), state.before + i))
  end
  state.k = 0
  local changes = { 'at', series.at(state), 'last', state.last_date .. state.last_id }
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
    shard.issued = shard.issued + #state.records
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
  local s, r, version, count, from = unpack_struct('>I2I2dI2', ARGV[6], at)
  local first, state, refused = #replies + 1, nil, nil
  for i = 1, count do
    local id, fingerprint, nth, bytes, rest = unpack_struct('>c16c8I2I4', ARGV[6], from)
    if i == 1 then
      state, refused = read_state(k, shards[s], version, all_rules[r], renderings[nth])
    end
    from = rest + bytes
    local reply = refused or answer(state, renderings[nth], id, fingerprint, sub(ARGV[6], rest, from - 1))
    refused_any = refused_any or (type(reply) == 'table' and not ACCEPTED[reply[1]])
    replies[#replies + 1] = reply
  end
  at = from
  if state and not index.can_grow(state.ids, state.position) then
    refused_any = true
    for i = first, #replies do
      replies[i] = { 'damaged', 'a bucket of the id index is missing, or in the way' }
    end
  elseif state and #state.records > 0 then
    states[#states + 1] = state
  end
end

if atomic and refused_any then
  states = {}
end
local turned_dirty, runs = mark(shards, states), {}
for _, state in ipairs(states) do
  write(state, runs)
end
return { 'ok', clock_ms, turned_dirty, replies, runs }
