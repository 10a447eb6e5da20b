-- series.lua: what scripts share: whether they may go on, the server's time, and of a series that records are added
-- to its state, its next numbers and its outbox.

local series = {} -- luacheck: ignore 241 (the scripts that include this file use it)
local COUNTER_MAX, COUNTER_DIGITS = 9007199254740991, 16
local AT = '>dI4dI4I4dddI4' -- with a value above 64 bytes a hash takes several times the memory
local call, format, sub = redis.call, string.format, string.sub
local pack_struct, unpack_struct = struct.pack, struct.unpack

-- A whole number in digits; '..' would turn 1e14 into 1e+14.
function series.text(number)
  return format('%d', number)
end

-- The server's time, in ms.
function series.clock_ms()
  local time = call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Whether a caller's epoch and generation are those of the shard.
function series.is_current(key, epoch, generation)
  local shard = call('HMGET', key, 'epoch', 'generation')
  return shard[1] == epoch and shard[2] == generation
end

-- Answers the shard's backlog; or nothing, the word why no script may go on, and the reason of a halt.
function series.enter(key, epoch, generation)
  local shard = call('HMGET', key, 'epoch', 'generation', 'backlog', 'halted')
  if not shard[1] or not shard[2] or not shard[3] then
    return nil, 'lost'
  elseif shard[4] then
    return nil, 'halted', shard[4]
  elseif shard[1] ~= epoch or shard[2] ~= generation then
    return nil, 'stale'
  end
  return tonumber(shard[3])
end

-- Where a series stands, as its hash keeps it in `at`: position and k of its last record, settled position, how many
-- items its outbox holds and how many of them are skips and voids, how many entries were claimed, the time of its last
-- record (ms), the number of its last entry, and the k that was settled at the settled position. One field: each more
-- would cost as much as all of this together.
function series.unpack_at(at)
  return unpack_struct(AT, at)
end

-- The `at` of a series of which nothing is known but how many entries it has.
function series.new_at(position)
  return pack_struct(AT, position, 0, 0, 0, 0, 0, 0, 0, 0)
end

-- Whether a series has records, given its `at`, if it has one.
function series.is_used(at)
  local position, k = series.unpack_at(at or series.new_at(0))
  return position > 0 or k > 0
end

-- Reads a series with the counters of these fields, and cross-checks its outbox. Answers its state; or nothing, and the
-- reply that refuses requests.
function series.read(key, outbox, prefix, clock_ms, fields)
  local h = call('HMGET', key, 'version', 'open', 'on', 'changing', 'at', 'last', unpack(fields))
  if not h[1] or h[2] ~= '1' then
    return nil, { 'unloaded' }
  elseif not h[5] then
    return nil, { 'damaged', 'the place of the series is missing' }
  end
  local position, k, settled, items, notes, claims, time, number, settled_k = series.unpack_at(h[5])
  local length = call('XLEN', outbox)
  if length ~= items then
    return nil, { 'damaged', 'the outbox holds ' .. length .. ' items instead of ' .. items }
  end
  local beyond = length > 0 and call('XREVRANGE', outbox, '+', format('(%d-%d', position, k), 'COUNT', 1)[1]
  if beyond then
    local place = format('%d-%d', position, k)
    return nil, { 'damaged', 'the outbox goes on to ' .. beyond[1] .. ', the series to ' .. place }
  end
  local last, counters = h[6] or '', {}
  for i = 1, #fields do
    counters[fields[i]] = tonumber(h[6 + i]) or false
  end
  return {
    key = key, outbox = outbox, prefix = prefix, version = tonumber(h[1]), active = h[3] == '1', changing = h[4],
    position = position, k = k, settled = settled, items = items, notes = notes, claims = claims, number = number,
    last_date = sub(last, 1, 10), last_id = sub(last, 11), now = math.max(clock_ms, time),
    settled_k = settled_k, clock_ms = clock_ms, counters = counters, raised = {}, count = 0,
  }
end

-- What the hash of a series keeps as `at`, as its state now is.
function series.at(state)
  return pack_struct(AT, state.position, state.k, state.settled, state.items, state.notes, state.claims, state.now,
    state.number, state.settled_k)
end

-- An entry, given its position and id, if it is whole in the outbox: the head of its run, its request, and the id
-- before it there, which the first has not. A skip or a void cannot stand inside a run, so that of the entry is the
-- first item that does not end before its position.
function series.entry(outbox, position, id)
  local item = call('XRANGE', outbox, series.text(position) .. '-0', '+', 'COUNT', 1)[1]
  local head, requests = item and item[2][2], item and item[2][4] or ''
  local at, before = 1, ''
  while at + 27 <= #requests do
    local found, _, bytes, rest = unpack_struct('>c16c8I4', requests, at)
    if found == id and rest + bytes - 1 <= #requests then
      return head, sub(requests, at, rest + bytes - 1), before
    end
    at, before = rest + bytes, found
  end
end

-- Why no request that depends on the definition or the day can be answered now, if so; under the rules that a caller
-- computed for a local day (allocate.lua).
function series.refusal(state, version, rules)
  if state.changing then
    return { 'changing', state.clock_ms - tonumber(state.changing) }
  elseif state.version ~= version then
    return { 'version', state.version }
  elseif state.now < rules[1] or state.now >= rules[2] then
    return { 'window', state.now }
  end
end

-- The last value of a counter, before its first entry what it begins with less one. Counters that were not read with
-- the series are read now: those of another rendering.
function series.last(state, field, rules)
  if state.counters[field] == nil then
    state.counters[field] = tonumber(call('HGET', state.key, field)) or false
  end
  return state.raised[field] or state.counters[field] or (state.position + state.count == 0 and rules[6] - 1 or 0)
end

-- Why the counters of a rendering cannot have these values, each plus `more`, if they cannot.
function series.beyond(rendering, rules, values, more)
  local counted, padding = rendering[3], rendering[4]
  for i = 1, #counted do
    if values[counted[i]] + more > COUNTER_MAX then
      return { 'exhausted' }
    end
  end
  if math.max(padding, COUNTER_DIGITS) * #counted <= rules[5] then -- they fit, however high the counters are
    return nil
  end
  local digits = 0
  for i = 1, #counted do
    digits = digits + math.max(padding, #series.text(values[counted[i]] + more))
  end
  return digits > rules[5] and { 'overflow', digits } or nil
end

-- The values that a rendering's counters get next; or nothing, and why there are none.
function series.count(state, rendering, rules)
  local values, fields = {}, rendering[2]
  for i = 1, #fields do
    values[i] = series.last(state, fields[i], rules) + 1
  end
  local refused = series.beyond(rendering, rules, values, 0)
  if refused then
    return nil, refused
  end
  return values
end

-- Adds a skip or a void to the outbox, behind the last record. Answers 1 when the shard has turned dirty.
function series.append(state, shard, dirty, backlog, id, fields)
  local was_dirty = call('SCARD', dirty) > 0
  state.k, state.items, state.notes = state.k + 1, state.items + 1, state.notes + 1
  call('XADD', state.outbox, format('%d-%d', state.position, state.k), unpack(fields))
  call('HSET', state.key, 'at', series.at(state))
  call('SADD', dirty, id)
  call('HSET', shard, 'backlog', series.text(backlog + 1))
  return was_dirty and 0 or 1
end
