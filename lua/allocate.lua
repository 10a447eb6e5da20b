#!lua
-- allocate.lua: issue the next numbers of some series of one shard, or answer with what was issued before.
--
-- One call carries the requests of many callers, each answered for itself; or it is a batch, all or nothing.
-- Everything is checked before the first write, so that a refusal, a wrong type or a full memory leaves every key as
-- it was.
--
-- KEYS[1]       shard hash: epoch, generation, backlog; halted when allocation is stopped
-- KEYS[2]       dirty set: ids of the series whose outbox holds records
-- KEYS[3i..]    for group i = 1, 2, ...: its series hash, its outbox stream, the prefix of its id index (index.lua)
-- ARGV[1]       epoch
-- ARGV[2]       generation
-- ARGV[3]       how many records the shard's outboxes may hold
-- ARGV[4]       '1' when the call is a batch: one refused request refuses all
-- ARGV[5]       msgpack: a list of groups {series id, version, number of requests, rules, renderings, which}
--               rules       {from ms, until ms, today, strict, width, digits_max, first}: the local day for which the
--                           renderings hold, whether dates must not go back, how counters are written, and what
--                           they begin with in the series' first periods
--               renderings  a list of {date, pieces, fields}: the format written for a date; a piece is a text, or
--                           the number of the field that stands there; a field is a counter in its period
--               which       the number of each request's rendering, or empty when all have the first
-- ARGV[6..]     three for each request, in the order of the groups: tag (16 bytes id, 8 bytes fingerprint of the
--               payload), meta as canonical JSON or '', client's signature or ''
--
-- Replies {call, now ms, shard turned dirty (1 or 0), {request, ...}}; call is
--   'ok'        the requests are answered
--   'lost'      the shard hash is missing
--   'stale'     the caller's epoch or generation is not this server's
--   'halted'    allocation is stopped; the second element is the reason
-- and a request is one of
--   {'issued', position, numbers, code, created ms, date, previous id or ''}
--   {'replayed', position, numbers, code, created ms, date, previous id or '', signature or ''}
--               numbers is 'field=value;...', or the value alone when the format has just %inc%
--   {'settled', position}      issued before, and the store has it
--   {'conflict', position}     issued before with another payload
--   {'unloaded'}               the series is not loaded
--   {'changing', since ms}     its definition is being changed
--   {'version', version}       the caller's definition is not the current one
--   {'inactive'}               the series is deactivated
--   {'window'}                 now lies outside the day that the renderings hold for
--   {'past', date}             the series is strict, and its last entry has this later date
--   {'future', today}          the series is strict, and the date is after today
--   {'exhausted'}              a counter has reached 2^53 - 1
--   {'overflow', digits}       the counters have more digits than max_length leaves them
--   {'backlog'}                the shard's outboxes are full
--   {'damaged', what}          keys of the series contradict one another

-- @include index.lua

local COUNTER_MAX = 9007199254740991
local ACCEPTED = { issued = true, replayed = true, settled = true }
local OUTBOX_FIELDS = { 'i', 'f', 'c', 'n', 't', 'd', 'p', 'm', 's' }

local function text(number)
  return string.format('%.0f', number)
end

local shard = redis.call('HMGET', KEYS[1], 'epoch', 'generation', 'backlog', 'halted')
local time = redis.call('TIME')
local clock_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if not shard[1] or not shard[2] or not shard[3] then
  return { 'lost', clock_ms, 0, {} }
elseif shard[4] then
  return { 'halted', shard[4], 0, {} }
elseif shard[1] ~= ARGV[1] or shard[2] ~= ARGV[2] then
  return { 'stale', clock_ms, 0, {} }
end

local room = tonumber(ARGV[3]) - tonumber(shard[3])
local was_dirty = redis.call('SCARD', KEYS[2]) > 0
local atomic = ARGV[4] == '1'
local groups = cmsgpack.unpack(ARGV[5])

-- The last values of all counters that a group's renderings name.
local function read_counters(key, renderings)
  local values = {}
  for _, rendering in ipairs(renderings) do
    local fields = rendering[3]
    for i, value in ipairs(redis.call('HMGET', key, unpack(fields))) do
      values[fields[i]] = tonumber(value or nil)
    end
  end
  return values
end

-- Reads and cross-checks a group's keys. Answers its state, or the reply that all its requests get.
local function read_state(group, key)
  local h = redis.call('HMGET', KEYS[key], 'version', 'open', 'active', 'changing', 'position', 'last_date',
    'last_id', 'last_time', 'records', 'settled')
  local length = redis.call('XLEN', KEYS[key + 1])
  local top = redis.call('XREVRANGE', KEYS[key + 1], '+', '-', 'COUNT', 1)[1]
  if not h[1] or h[2] ~= '1' then
    return nil, { 'unloaded' }
  end
  local rules = group[4]
  local state = {
    hash = KEYS[key], outbox = KEYS[key + 1], prefix = KEYS[key + 2],
    from = rules[1], upto = rules[2], today = rules[3], strict = rules[4], width = rules[5], digits_max = rules[6],
    first = rules[7], counters = read_counters(KEYS[key], group[5]), raised = {}, known = {},
    active = h[3] == '1', changing = h[4], version = tonumber(h[1]), wanted = group[2],
    position = tonumber(h[5]), last_date = h[6] or '', last_id = h[7] or '', settled = tonumber(h[10]),
    records = tonumber(h[9]), now = math.max(clock_ms, tonumber(h[8])), entries = {}, fresh = {},
  }
  state.entries_before = state.position
  for field in pairs(state.counters) do
    state.known[field] = true
  end
  if length ~= state.records then
    return nil, { 'damaged', 'the outbox holds ' .. length .. ' records instead of ' .. text(state.records) }
  elseif top and tonumber(string.match(top[1], '^%d+')) ~= state.position then
    return nil, { 'damaged', 'the outbox ends at ' .. top[1] .. ', the series at ' .. text(state.position) }
  end
  return state
end

local function replay(state, position, fingerprint, known)
  if fingerprint ~= known then
    return { 'conflict', position }
  end
  local found = redis.call('XRANGE', state.outbox, text(position) .. '-0', text(position) .. '-0')
  if not found[1] then
    if position > state.settled then
      return { 'damaged', 'entry ' .. text(position) .. ' is neither in the outbox nor settled' }
    end
    return { 'settled', position }
  end
  local r = {}
  for i = 1, #found[1][2], 2 do
    r[found[1][2][i]] = found[1][2][i + 1]
  end
  return { 'replayed', position, r.n, r.c, tonumber(r.t), r.d, r.p or '', r.s or '' }
end

-- The values that a rendering's counters get next, and the digits of each; or why there are none.
local function count(state, rendering)
  local values, digits, length = {}, {}, 0
  for i, field in ipairs(rendering[3]) do
    local last = state.counters[field] or (state.position == 0 and state.first - 1 or 0)
    if last >= COUNTER_MAX then
      return nil, { 'exhausted' }
    end
    values[i] = last + 1
    digits[i] = text(values[i])
    digits[i] = string.rep('0', state.width - #digits[i]) .. digits[i]
  end
  for _, piece in ipairs(rendering[2]) do
    length = length + (digits[piece] and #digits[piece] or 0)
  end
  if length > state.digits_max then
    return nil, { 'overflow', length }
  end
  return values, digits
end

-- Why a request with a new id is refused, if it is.
local function refusal(state, date)
  if state.changing then
    return { 'changing', tonumber(state.changing) }
  elseif state.version ~= state.wanted then
    return { 'version', state.version }
  elseif not state.active then
    return { 'inactive' }
  elseif state.now < state.from or state.now >= state.upto then
    return { 'window' }
  elseif state.strict and date < state.last_date then
    return { 'past', state.last_date }
  elseif state.strict and date > state.today then
    return { 'future', state.today }
  elseif room <= 0 then
    return { 'backlog' }
  end
end

-- The counters' values as the outbox keeps them.
local function numbers(rendering, values)
  local fields = rendering[3]
  if #fields == 1 and fields[1] == 'inc' then
    return text(values[1])
  end
  local pairs_of = {}
  for i, field in ipairs(fields) do
    pairs_of[i] = field .. '=' .. text(values[i])
  end
  return table.concat(pairs_of, ';')
end

local function issue(state, rendering, tag, meta, signature)
  local values, digits = count(state, rendering)
  if not values then
    return digits
  end
  local pieces = {}
  for i, piece in ipairs(rendering[2]) do
    pieces[i] = digits[piece] or piece
  end
  for i, field in ipairs(rendering[3]) do
    state.counters[field] = values[i]
    state.raised[field] = values[i]
  end
  local entry = { i = string.sub(tag, 1, 16), f = string.sub(tag, 17), t = state.now, d = rendering[1] }
  entry.m = meta ~= '' and meta or nil
  entry.s = signature ~= '' and signature or nil
  entry.p = state.last_id ~= '' and state.last_id or nil
  entry.n = numbers(rendering, values)
  entry.c = table.concat(pieces)
  state.position = state.position + 1
  entry.position = state.position
  state.last_id = entry.i
  state.last_date = entry.d
  state.last_number = values[1]
  state.fresh[entry.i] = entry
  table.insert(state.entries, entry)
  room = room - 1
  return { 'issued', entry.position, entry.n, entry.c, entry.t, entry.d, entry.p or '' }
end

local function answer(state, rendering, tag, meta, signature)
  local id, fingerprint = string.sub(tag, 1, 16), string.sub(tag, 17)
  local twin = state.fresh[id]
  if twin then
    if twin.f ~= fingerprint then
      return { 'conflict', twin.position }
    end
    return { 'replayed', twin.position, twin.n, twin.c, twin.t, twin.d, twin.p or '', twin.s or '' }
  end
  local known, position = index.find(state.prefix, state.entries_before, id)
  if known == 'lost' then
    return { 'damaged', 'a bucket of the id index is missing' }
  elseif known then
    return replay(state, position, fingerprint, known)
  end
  return refusal(state, rendering[1]) or issue(state, rendering, tag, meta, signature)
end

-- The buckets that a split touches: the one that is new and the one whose ids it shares.
local function split_pair(buckets)
  local created = buckets - 1
  return created, created - index.power_below(created)
end

-- The splits that the new entries will cause can be done: each source is whole, each new bucket is unused.
local function splits_possible(state)
  local first = index.bucket_count(state.entries_before)
  for buckets = first + 1, index.bucket_count(state.position) do
    local created, source = split_pair(buckets)
    if redis.call('HLEN', index.bucket_key(state.prefix, created)) > 0 then
      return false
    elseif source < first and not redis.call('HGET', index.bucket_key(state.prefix, source), '') then
      return false
    end
  end
  return true
end

-- Pushes pairs or fields in slices that Lua's stack can hold.
local function call_sliced(command, key, arguments)
  for from = 1, #arguments, 1000 do
    redis.call(command, key, unpack(arguments, from, math.min(from + 999, #arguments)))
  end
end

local function split(state, buckets)
  local created, source = split_pair(buckets)
  local content = redis.call('HGETALL', index.bucket_key(state.prefix, source))
  local moved, gone = { '', '' }, {}
  for i = 1, #content, 2 do
    if content[i] ~= '' and index.bucket_of(content[i], buckets) == created then
      table.insert(moved, content[i])
      table.insert(moved, content[i + 1])
      table.insert(gone, content[i])
    end
  end
  call_sliced('HSET', index.bucket_key(state.prefix, created), moved)
  call_sliced('HDEL', index.bucket_key(state.prefix, source), gone)
end

-- Forgets the counters of periods that are over: dates of a strict series do not go back to them.
local function forget(state)
  for field in pairs(state.raised) do
    local counter = string.match(field, '^%a+:')
    if counter and not state.known[field] then
      for _, old in ipairs(redis.call('HKEYS', state.hash)) do
        if string.sub(old, 1, #counter) == counter and not state.raised[old] then
          redis.call('HDEL', state.hash, old)
        end
      end
    end
  end
end

local function write(state, series)
  for i, entry in ipairs(state.entries) do
    local fields = {}
    for _, name in ipairs(OUTBOX_FIELDS) do
      if entry[name] then
        table.insert(fields, name)
        table.insert(fields, name == 't' and text(entry.t) or entry[name])
      end
    end
    redis.call('XADD', state.outbox, text(entry.position) .. '-0', unpack(fields))
    local entries = state.entries_before + i
    local buckets = index.bucket_count(entries - 1)
    if index.bucket_count(entries) > buckets then
      buckets = buckets + 1
      split(state, buckets)
    end
    redis.call('HSET', index.bucket_key(state.prefix, index.bucket_of(entry.i, buckets)), entry.i,
      entry.f .. index.pack_position(entry.position))
  end
  local changes = { 'position', text(state.position), 'last_id', state.last_id, 'last_date', state.last_date,
    'last_number', text(state.last_number), 'last_time', text(state.now),
    'records', text(state.records + #state.entries) }
  for field, value in pairs(state.raised) do
    table.insert(changes, field)
    table.insert(changes, text(value))
  end
  if state.strict then
    forget(state)
  end
  call_sliced('HSET', state.hash, changes)
  redis.call('SADD', KEYS[2], series)
end

local replies, states, argument, issued, refused_any = {}, {}, 6, 0, false
for g, group in ipairs(groups) do
  local state, refused = read_state(group, g * 3)
  local first = #replies + 1
  for i = 1, group[3] do
    local rendering = group[5][group[6][i] or 1]
    local reply = refused or answer(state, rendering, ARGV[argument], ARGV[argument + 1], ARGV[argument + 2])
    refused_any = refused_any or not ACCEPTED[reply[1]]
    table.insert(replies, reply)
    argument = argument + 3
  end
  if state and #state.entries > 0 and splits_possible(state) then
    table.insert(states, { state, group[1] })
    issued = issued + #state.entries
  elseif state and #state.entries > 0 then
    refused_any = true
    for i = first, #replies do
      replies[i] = { 'damaged', 'the id index cannot grow: a bucket is missing or in the way' }
    end
  end
end

if atomic and refused_any then
  return { 'ok', clock_ms, 0, replies }
end
for _, pair in ipairs(states) do
  write(pair[1], pair[2])
end
if issued > 0 then
  redis.call('HSET', KEYS[1], 'backlog', text(tonumber(shard[3]) + issued))
end
return { 'ok', clock_ms, (issued > 0 and not was_dirty) and 1 or 0, replies }
