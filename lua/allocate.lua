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
--               of the payload (8 bytes), the lengths of what follows (4 bytes each), meta as canonical JSON or '',
--               and the client's signature or ''
--
-- Replies {call, now ms, {shard turned dirty (1 or 0), ...}, {request, ...}}; call is
--   'ok'        the requests are answered
--   'lost'      a shard hash is missing
--   'stale'     the caller's epoch or generation is not a shard's
--   'halted'    allocation is stopped; the second element is the reason
-- and a request is one of
--   {'issued', position, numbers, code, created ms, date, previous id or ''}
--   {'replayed', position, numbers, code, created ms, date, previous id or '', signature or '', void or '',
--               claimed (1 or 0)}
--               numbers is 'field=value;...', or the value alone when the format has just %inc%
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
-- date, numbers, code, 1 if claimed, signature, meta, and the id of the entry before or nothing.

-- @include index.lua
-- @include series.lua

local text = series.text
local RUN_MAX = 32
local ACCEPTED = { issued = true, replayed = true, settled = true }
local KEPT = '^(%Z*)%z(%Z*)%z(%Z*)%z(%Z*)%z(%Z*)%z(%Z*)%z%Z*%z(.*)$'

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
  state.id, state.shard, state.wanted = group[1], shard, group[3]
  state.ids, state.now_text = index.open(state.prefix, state.position), text(state.now)
  state.raised, state.begun, state.entries, state.fresh = {}, {}, {}, {}
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
  local created, date, numbers, code, claimed, signature, previous = string.match(record, KEPT, 25)
  return { 'replayed', position, numbers, code, tonumber(created), date, previous, signature, void,
    claimed == '1' and 1 or 0 }
end

-- Why a request with a new id is refused, if it is.
local function refusal(state, date)
  local refused = series.refusal(state, state.wanted)
  if refused then
    return refused
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

local function issue(state, rendering, id, fingerprint, meta, signature)
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
  local previous = state.last_id
  state.position = state.position + 1
  state.last_id = id
  state.last_date = date
  state.last_number = values[1]
  state.claims = state.claims + (claimed and 1 or 0)
  local entry = { id = id, fingerprint = fingerprint, position = state.position, claimed = claimed and 1 or 0,
    signature = signature, said = { 'issued', state.position, numbers, code, state.now, date, previous } }
  entry.record = id .. fingerprint .. state.now_text .. '\0' .. date .. '\0' .. numbers .. '\0' .. code .. '\0'
    .. (claimed and '1' or '') .. '\0' .. signature .. '\0' .. meta .. '\0' .. previous
  state.fresh[id] = entry
  state.entries[#state.entries + 1] = entry
  state.shard.room = state.shard.room - 1
  return entry.said
end

local function answer(state, rendering, id, fingerprint, meta, signature)
  local twin = state.fresh[id]
  if twin then
    if twin.fingerprint ~= fingerprint then
      return { 'conflict', twin.position }
    end
    local _, position, numbers, code, created, date, previous = unpack(twin.said)
    return { 'replayed', position, numbers, code, created, date, previous, twin.signature, '', twin.claimed }
  end
  local value = index.find(state.ids, id)
  if value == nil then
    return { 'damaged', 'a bucket of the id index is missing' }
  elseif value then
    local known, position = index.unpack(value)
    return replay(state, id, position, fingerprint, known)
  end
  return refusal(state, rendering[1]) or issue(state, rendering, id, fingerprint, meta, signature)
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
  local entries, items = state.entries, 0
  for first = 1, #entries, RUN_MAX do
    local last, run = math.min(first + RUN_MAX - 1, #entries), {}
    for i = first, last do
      run[#run + 1] = struct.pack('>I4', #entries[i].record)
      run[#run + 1] = entries[i].record
    end
    redis.call('XADD', state.outbox, text(entries[last].position) .. '-0', 'e', table.concat(run))
    items = items + 1
  end
  return items
end

local function write(state)
  local items = state.items + append(state)
  for _, entry in ipairs(state.entries) do
    index.add(state.ids, entry.id, index.pack(entry.fingerprint, entry.position))
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
    shard.issued = shard.issued + #state.entries
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
    local id, fingerprint, meta_bytes, signature_bytes, from = struct.unpack('>c16c8I4I4', ARGV[6], at)
    at = from + meta_bytes + signature_bytes
    local reply = refused or answer(state, rendering, id, fingerprint, string.sub(ARGV[6], from, from + meta_bytes - 1),
      string.sub(ARGV[6], from + meta_bytes, at - 1))
    refused_any = refused_any or not ACCEPTED[reply[1]]
    replies[#replies + 1] = reply
  end
  if state and #state.entries > 0 and index.can_grow(state.ids, state.position) then
    states[#states + 1] = state
  elseif state and #state.entries > 0 then
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
