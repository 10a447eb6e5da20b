#!lua
-- allocate.lua: issue the next numbers of some series of one shard, or answer with what was issued before.
--
-- One call carries the requests of many callers; each is answered for itself. Everything is checked before the first
-- write, so that a refusal, a wrong type or a full memory leaves every key as it was.
--
-- KEYS[1]       shard hash: epoch, generation, backlog; halted when allocation is stopped
-- KEYS[2]       dirty set: ids of the series whose outbox holds records
-- KEYS[3i..]    for group i = 1, 2, ...: its series hash, its outbox stream, the prefix of its id index (index.lua)
-- ARGV[1]       epoch
-- ARGV[2]       generation
-- ARGV[3]       how many records the shard's outboxes may hold
-- ARGV[4]       msgpack: a list of groups {series id, version, number of requests, plan}; plan is the series' rendered
--               format for a window of time: {from ms, until ms, date, prefix, width, suffix}
-- ARGV[5..]     three for each request, in the order of the groups: tag (16 bytes id, 8 bytes fingerprint of the
--               payload), meta as canonical JSON or '', client's signature or ''
--
-- Replies {call, now ms, shard turned dirty (1 or 0), {request, ...}}; call is
--   'ok'        the requests are answered
--   'lost'      the shard hash is missing
--   'stale'     the caller's epoch or generation is not this server's
--   'halted'    allocation is stopped; the second element is the reason
-- and a request is one of
--   {'issued', position, number, code, created ms, date, previous id or ''}
--   {'replayed', position, number, code, created ms, date, previous id or '', signature or ''}
--   {'settled', position}      issued before, and the store has it
--   {'conflict', position}     issued before with another payload
--   {'unloaded'}               the series is not loaded
--   {'changing', since ms}     its definition is being changed
--   {'version', version}       the caller's definition is not the current one
--   {'inactive'}               the series is deactivated
--   {'window'}                 now lies outside the plan's window
--   {'exhausted'}              the counter has reached 2^53 - 1
--   {'backlog'}                the shard's outboxes are full
--   {'damaged', what}          keys of the series contradict one another

-- @include index.lua

local COUNTER_MAX = 9007199254740991
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
local groups = cmsgpack.unpack(ARGV[4])

-- Reads and cross-checks a group's keys. Answers its state, or the reply that all its requests get.
local function read_state(group, key)
  local h = redis.call('HMGET', KEYS[key], 'version', 'open', 'active', 'changing', 'position', 'inc',
    'last_id', 'last_time', 'records', 'settled')
  local length = redis.call('XLEN', KEYS[key + 1])
  local top = redis.call('XREVRANGE', KEYS[key + 1], '+', '-', 'COUNT', 1)[1]
  if not h[1] or h[2] ~= '1' then
    return nil, { 'unloaded' }
  end
  local state = {
    hash = KEYS[key], outbox = KEYS[key + 1], prefix = KEYS[key + 2], plan = group[4],
    active = h[3] == '1', changing = h[4], version = tonumber(h[1]), wanted = group[2],
    position = tonumber(h[5]), number = tonumber(h[6]), last_id = h[7] or '', settled = tonumber(h[10]),
    records = tonumber(h[9]), now = math.max(clock_ms, tonumber(h[8])), entries = {}, fresh = {},
  }
  state.entries_before = state.position
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
  return { 'replayed', position, tonumber(r.n), r.c, tonumber(r.t), r.d, r.p or '', r.s or '' }
end

-- Why a request with a new id is refused, if it is.
local function refusal(state)
  if state.changing then
    return { 'changing', tonumber(state.changing) }
  elseif state.version ~= state.wanted then
    return { 'version', state.version }
  elseif not state.active then
    return { 'inactive' }
  elseif state.now < state.plan[1] or state.now >= state.plan[2] then
    return { 'window' }
  elseif state.number >= COUNTER_MAX then
    return { 'exhausted' }
  elseif room <= 0 then
    return { 'backlog' }
  end
end

local function issue(state, tag, meta, signature)
  local plan = state.plan
  local entry = { i = string.sub(tag, 1, 16), f = string.sub(tag, 17), t = state.now, d = plan[3] }
  entry.m = meta ~= '' and meta or nil
  entry.s = signature ~= '' and signature or nil
  entry.p = state.last_id ~= '' and state.last_id or nil
  state.position = state.position + 1
  state.number = state.number + 1
  local digits = text(state.number)
  entry.position = state.position
  entry.n = digits
  entry.c = plan[4] .. string.rep('0', plan[5] - #digits) .. digits .. plan[6]
  state.last_id = entry.i
  state.fresh[entry.i] = entry
  table.insert(state.entries, entry)
  room = room - 1
  return { 'issued', entry.position, state.number, entry.c, entry.t, entry.d, entry.p or '' }
end

local function answer(state, tag, meta, signature)
  local id, fingerprint = string.sub(tag, 1, 16), string.sub(tag, 17)
  local twin = state.fresh[id]
  if twin then
    if twin.f ~= fingerprint then
      return { 'conflict', twin.position }
    end
    return { 'replayed', twin.position, tonumber(twin.n), twin.c, twin.t, twin.d, twin.p or '', twin.s or '' }
  end
  local known, position = index.find(state.prefix, state.entries_before, id)
  if known == 'lost' then
    return { 'damaged', 'a bucket of the id index is missing' }
  elseif known then
    return replay(state, position, fingerprint, known)
  end
  return refusal(state) or issue(state, tag, meta, signature)
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
  redis.call('HSET', state.hash, 'position', text(state.position), 'inc', text(state.number),
    'last_id', state.last_id, 'last_date', state.plan[3], 'last_time', text(state.now),
    'records', text(state.records + #state.entries))
  redis.call('SADD', KEYS[2], series)
end

local replies, states, argument, issued = {}, {}, 5, 0
for g, group in ipairs(groups) do
  local state, refused = read_state(group, g * 3)
  local first = #replies + 1
  for _ = 1, group[3] do
    local reply = refused or answer(state, ARGV[argument], ARGV[argument + 1], ARGV[argument + 2])
    table.insert(replies, reply)
    argument = argument + 3
  end
  if state and #state.entries > 0 and splits_possible(state) then
    table.insert(states, { state, group[1] })
    issued = issued + #state.entries
  elseif state and #state.entries > 0 then
    for i = first, #replies do
      replies[i] = { 'damaged', 'the id index cannot grow: a bucket is missing or in the way' }
    end
  end
end

for _, pair in ipairs(states) do
  write(pair[1], pair[2])
end
if issued > 0 then
  redis.call('HSET', KEYS[1], 'backlog', text(tonumber(shard[3]) + issued))
end
return { 'ok', clock_ms, (issued > 0 and not was_dirty) and 1 or 0, replies }
