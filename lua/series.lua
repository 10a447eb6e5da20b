-- series.lua: what scripts share: whether they may go on, the server's time, and of a series that records are added
-- to its state, its next numbers and its outbox.

local series = {} -- luacheck: ignore 241 (the scripts that include this file use it)
local COUNTER_MAX = 9007199254740991

-- A whole number in digits; '..' would turn 1e14 into 1e+14.
function series.text(number)
  return string.format('%d', number)
end

-- The server's time, in ms.
function series.clock_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- Whether a caller's epoch and generation are those of the shard.
function series.is_current(key, epoch, generation)
  local shard = redis.call('HMGET', key, 'epoch', 'generation')
  return shard[1] == epoch and shard[2] == generation
end

-- Answers the shard's backlog; or nothing, the word why no script may go on, and the reason of a halt.
function series.enter(key, epoch, generation)
  local shard = redis.call('HMGET', key, 'epoch', 'generation', 'backlog', 'halted')
  if not shard[1] or not shard[2] or not shard[3] then
    return nil, 'lost'
  elseif shard[4] then
    return nil, 'halted', shard[4]
  elseif shard[1] ~= epoch or shard[2] ~= generation then
    return nil, 'stale'
  end
  return tonumber(shard[3])
end

-- Reads a series with the counters of these fields, and cross-checks its outbox. Answers its state; or nothing, and the
-- reply that refuses requests.
function series.read(key, outbox, prefix, clock_ms, fields)
  local h = redis.call('HMGET', key, 'version', 'open', 'on', 'changing', 'pos', 'k', 'date',
    'id', 'time', 'items', 'done', 'claims', 'notes', unpack(fields))
  if not h[1] or h[2] ~= '1' then
    return nil, { 'unloaded' }
  end
  local length, place = redis.call('XLEN', outbox), h[5] .. '-' .. h[6]
  if length ~= tonumber(h[10]) then
    return nil, { 'damaged', 'the outbox holds ' .. length .. ' items instead of ' .. h[10] }
  end
  local beyond = length > 0 and redis.call('XREVRANGE', outbox, '+', '(' .. place, 'COUNT', 1)[1]
  if beyond then
    return nil, { 'damaged', 'the outbox goes on to ' .. beyond[1] .. ', the series to ' .. place }
  end
  local counters = {}
  for i, field in ipairs(fields) do
    counters[field] = tonumber(h[13 + i] or nil)
  end
  return {
    key = key, outbox = outbox, prefix = prefix, clock_ms = clock_ms, version = tonumber(h[1]), active = h[3] == '1',
    changing = tonumber(h[4] or nil), position = tonumber(h[5]), after = tonumber(h[6]), last_date = h[7] or '',
    last_id = h[8] or '', now = math.max(clock_ms, tonumber(h[9])), items = length, settled = tonumber(h[11]),
    claims = tonumber(h[12]), notes = tonumber(h[13]), counters = counters,
  }
end

-- The record of an entry, given its position and id, if it is whole in the outbox. A skip or a void cannot stand inside
-- a run, so that of the entry is the first item that does not end before its position.
function series.record(outbox, position, id)
  local item = redis.call('XRANGE', outbox, series.text(position) .. '-0', '+', 'COUNT', 1)[1]
  local run, at = item and item[2][2] or '', 1
  while at + 19 <= #run do
    local bytes, found = struct.unpack('>I4c16', run, at)
    if found == id and at + 3 + bytes <= #run then
      return string.sub(run, at + 4, at + 3 + bytes)
    end
    at = at + 4 + bytes
  end
end

-- Reads more counters of a series, where requests have several renderings.
function series.read_more(state, fields)
  for i, value in ipairs(redis.call('HMGET', state.key, unpack(fields))) do
    state.counters[fields[i]] = tonumber(value or nil)
  end
end

-- Takes the rules that a caller computed for a local day.
function series.apply(state, rules)
  state.from, state.upto, state.today, state.strict, state.digits_max, state.first = unpack(rules)
end

-- Why no request that depends on the definition or the day can be answered now, if so.
function series.refusal(state, version)
  if state.changing then
    return { 'changing', state.clock_ms - state.changing }
  elseif state.version ~= version then
    return { 'version', state.version }
  elseif state.now < state.from or state.now >= state.upto then
    return { 'window', state.now }
  end
end

-- The last value of a counter, before its first entry what it begins with less one.
function series.last(state, field)
  return state.counters[field] or (state.position == 0 and state.first - 1 or 0)
end

-- The values that a rendering's counters get next, and the code with them; or nothing, and why there are none.
function series.count(state, rendering)
  local values, digits = {}, {}
  for i, field in ipairs(rendering[2]) do
    local last = series.last(state, field)
    if last >= COUNTER_MAX then
      return nil, { 'exhausted' }
    end
    values[i] = last + 1
  end
  for i, nth in ipairs(rendering[4]) do
    digits[i] = values[nth]
  end
  local code = string.format(rendering[3], unpack(digits))
  if #code - rendering[5] > state.digits_max then
    return nil, { 'overflow', #code - rendering[5] }
  end
  return values, code
end

-- Adds a skip or a void to the outbox, behind the last record. Answers 1 when the shard has turned dirty.
function series.append(state, shard, dirty, backlog, id, fields)
  local was_dirty = redis.call('SCARD', dirty) > 0
  local after = series.text(state.after + 1)
  redis.call('XADD', state.outbox, series.text(state.position) .. '-' .. after, unpack(fields))
  redis.call('HSET', state.key, 'k', after, 'items', series.text(state.items + 1), 'notes',
    series.text(state.notes + 1), 'time', series.text(state.now))
  redis.call('SADD', dirty, id)
  redis.call('HSET', shard, 'backlog', series.text(backlog + 1))
  return was_dirty and 0 or 1
end
