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
-- ARGV[5]       msgpack: a list of groups {series id, s of its shard, version, number of requests, rules, renderings,
--               which}
--               rules       {from ms, until ms, today, strict, digits_max, first}: the local day for which the
--                           renderings hold, whether dates must not go back, how many digits a code may have, and
--                           what counters begin with in the series' first periods
--               renderings  a list of {date, fields, code, counted, literal, numbers, claimed}: the series' format
--                           for a date. A field is a counter in its period; code writes a code (string.format) from
--                           the fields that counted numbers, and literal bytes of it are no digits of theirs;
--                           numbers writes the values of all fields as the outbox keeps them; claimed says that the
--                           requests came here because the series was their company's default
--               which       the number of each request's rendering, or empty when all have the first
-- ARGV[6]       the requests, in the order of the groups and one behind the other: the id (16 bytes), the fingerprint
--               of the payload (8 bytes), and behind their length (4 bytes) the client's signature or '', a NUL, and
--               meta as canonical JSON or ''
--
-- Replies {call, now ms, {shard turned dirty (1 or 0), ...}, {request, ...}}; call is
--   'ok'        the requests are answered
--   'lost'      a shard hash is missing
--   'stale'     the caller's epoch or generation is not a shard's
--   'halted'    allocation is stopped; the second element is the reason
-- and a request is one of
--   {'issued', position, record}           record as the outbox has it, see below
--   {'replayed', position, record, void or ''}
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

local text = series.text
local RUN_MAX = 32
local ACCEPTED = { issued = true, replayed = true, settled = true }

local clock_ms = series.clock_ms()
local atomic = ARGV[4] == '1'
local groups = cmsgpack.unpack(ARGV[5])
local shard_keys = #KEYS - 3 * #groups

-- The shards as they stand; or nothing, and the reply that refuses the call.
local function enter()
  local shards = {}
  for k = 1, shard_keys, 2 do
    local backlog, word, reason = series.enter(KEYS[k], ARGV[1], ARGV[2])
    if not backlog then
      return nil, { word, reason or 0, {}, {} }
    end
    shards[#shards + 1] = { key = KEYS[k], dirty = KEYS[k + 1], backlog = backlog, room = tonumber(ARGV[3]) - backlog,
      was_dirty = redis.call('SCARD', KEYS[k + 1]) > 0, issued = 0, ids = {} }
  end
  return shards
end

local function read_state(group, shard, k)
  local renderings = group[6]
  local state, refused = series.read(KEYS[k + 1], KEYS[k + 2], KEYS[k + 3], clock_ms, renderings[1][2])
  if not state then
    return nil, refused
  end
  for r = 2, #renderings do
    series.read_more(state, renderings[r][2])
  end
  series.apply(state, group[5])
  state.id, state.shard, state.now_text = group[1], shard, text(state.now)
  state.closed = series.refusal(state, group[3])
  state.ids, state.before = index.open(state.prefix, state.position), state.position
  state.raised, state.begun, state.records, state.fresh = {}, {}, {}, {}
  return state
end

local function replay(state, id, position, fingerprint, known)
  if fingerprint ~= known then
    return { 'conflict', position }
  end
  local void = redis.call('HGET', state.prefix .. ':voids', text(position)) or ''
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
  elseif state.strict and date > state.today then
    return { 'future', state.today }
  elseif state.shard.room <= 0 then
    return { 'backlog' }
  end
end

local function issue(state, rendering, id, fingerprint, rest)
  local values, code = series.count(state, rendering)
  if not values then
    return code
  end
  for i, field in ipairs(rendering[2]) do
    state.begun[field] = state.begun[field] or not state.counters[field]
    state.counters[field] = values[i]
    state.raised[field] = values[i]
  end
  local date, numbers, claimed = rendering[1], string.format(rendering[6], unpack(values)), rendering[7]
  local record = id .. fingerprint .. state.now_text .. '\0' .. date .. '\0' .. numbers .. '\0' .. code
    .. (claimed and '\0001\0' or '\0\0') .. rest .. '\0' .. state.last_id
  state.position = state.position + 1
  state.last_id = id
  state.last_date = date
  state.last_number = values[1]
  state.claims = state.claims + (claimed and 1 or 0)
  state.shard.room = state.shard.room - 1
  state.records[#state.records + 1] = record
  state.fresh[id] = #state.records
  return { 'issued', state.position, record }
end

local function answer(state, rendering, id, fingerprint, rest)
  local twin = state.fresh[id]
  if twin then
    local record, position = state.records[twin], state.before + twin
    local same = string.sub(record, 17, 24) == fingerprint
    return same and { 'replayed', position, record, '' } or { 'conflict', position }
  end
  local value = index.find(state.ids, id)
  if value == nil then
    return { 'damaged', 'a bucket of the id index is missing' }
  elseif value then
    local known, position = index.unpack(value)
    return replay(state, id, position, fingerprint, known)
  end
  return refusal(state, rendering[1]) or issue(state, rendering, id, fingerprint, rest)
end

-- Forgets the counters of periods that are over: dates of a strict series do not go back to them. A later period may
-- have been raised by a skip already; the names of periods sort by time.
local function forget(state)
  for field, begun in pairs(state.begun) do
    local counter = begun and string.match(field, '^%a+:')
    if counter then
      for _, old in ipairs(redis.call('HKEYS', state.key)) do
        if string.sub(old, 1, #counter) == counter and old < field and not state.raised[old] then
          redis.call('HDEL', state.key, old)
        end
      end
    end
  end
end

-- Adds the entries to the outbox; answers how many items they make.
local function append(state)
  local records, items = state.records, 0
  for first = 1, #records, RUN_MAX do
    local last, run = math.min(first + RUN_MAX - 1, #records), {}
    for i = first, last do
      run[#run + 1] = struct.pack('>I4', #records[i])
      run[#run + 1] = records[i]
    end
    redis.call('XADD', state.outbox, text(state.before + last) .. '-0', 'e', table.concat(run))
    items = items + 1
  end
  return items
end

local function write(state)
  local items = state.items + append(state)
  for i, record in ipairs(state.records) do
    local value = index.pack(string.sub(record, 17, 24), state.before + i)
    index.add(state.ids, string.sub(record, 1, 16), value)
  end
  local changes = { 'pos', text(state.position), 'k', '0', 'id', state.last_id, 'date',
    state.last_date, 'num', text(state.last_number), 'time', state.now_text,
    'items', text(items), 'claims', text(state.claims) }
  for field, value in pairs(state.raised) do
    table.insert(changes, field)
    table.insert(changes, text(value))
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
    table.insert(shard.ids, state.id)
  end
  local turned_dirty = {}
  for s, shard in ipairs(shards) do
    if shard.issued > 0 then
      redis.call('HSET', shard.key, 'backlog', text(shard.backlog + shard.issued))
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
for g, group in ipairs(groups) do
  local state, refused = read_state(group, shards[group[2]], shard_keys + 3 * (g - 1))
  local first = #replies + 1
  for i = 1, group[4] do
    local rendering = group[6][group[7][i] or 1]
    local id, fingerprint, bytes, from = struct.unpack('>c16c8I4', ARGV[6], at)
    at = from + bytes
    local reply = refused or answer(state, rendering, id, fingerprint, string.sub(ARGV[6], from, at - 1))
    refused_any = refused_any or not ACCEPTED[reply[1]]
    replies[#replies + 1] = reply
  end
  if state and #state.records > 0 and index.can_grow(state.ids, state.position) then
    states[#states + 1] = state
  elseif state and #state.records > 0 then
    refused_any = true
    for i = first, #replies do
      replies[i] = { 'damaged', 'the id index cannot grow: a bucket is missing or in the way' }
    end
  end
end

if atomic and refused_any then
  states = {}
end
local turned_dirty = mark(shards, states)
for _, state in ipairs(states) do
  write(state)
end
return { 'ok', clock_ms, turned_dirty, replies }
