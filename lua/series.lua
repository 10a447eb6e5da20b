-- series.lua: what scripts share: whether they may go on, the server's time, the outbox of a shard, and of a series
-- that records are added to its state and its next numbers.

local series = {} -- luacheck: ignore 241 (the scripts that include this file use it)
local COUNTER_MAX, COUNTER_DIGITS = 9007199254740991, 16
local STATE = '>I1I1dddI4I4dddI1I1'
local DOUBLES = { [0] = '>', '>d', '>dd', '>ddd', '>dddd' } -- a format has up to four counters
local STATES = { [0] = STATE, STATE .. 'd', STATE .. 'dd', STATE .. 'ddd', STATE .. 'dddd' }
local DAY = 10 -- bytes of a date
series.HEAD, series.REQUEST = '>c36dI4ddI2I1I1', '>c16c8I4' -- of a run, and of a request in it: see allocate.lua
local call, format, sub, max, min = redis.call, string.format, string.sub, math.max, math.min
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

-- The word why no script may go on, given what the hash of a shard has in epoch, generation and halted; and with a halt
-- its reason. Nothing when they may.
function series.refused(shard, epoch, generation)
  if not shard[1] or not shard[2] then
    return 'lost'
  elseif shard[3] then
    return 'halted', shard[3]
  elseif shard[1] ~= epoch or shard[2] ~= generation then
    return 'stale'
  end
end

-- The shard with this hash and outbox as it stands, with a reply in `damage` when the outbox is not what it should be;
-- or nothing, and why no script may go on.
function series.enter(key, outbox, epoch, generation)
  local h = call('HMGET', key, 'epoch', 'generation', 'halted', 'backlog', 'written', 'settled')
  local word, reason = series.refused(h, epoch, generation)
  if word then
    return nil, word, reason
  end
  if not (h[4] and h[5] and h[6]) then
    return nil, 'lost'
  end
  local backlog, written, settled, length = tonumber(h[4]), tonumber(h[5]), tonumber(h[6]), call('XLEN', outbox)
  local waiting = written - settled
  return { key = key, outbox = outbox, backlog = backlog, written = written, settled = settled,
    damage = length ~= waiting and { 'damaged', format('the outbox holds %d items instead of %d', length, waiting) } }
end

-- A series' state, of what the hash of its shard has of it: whether it is open, whether active, its version, since when
-- its definition is being changed (ms, or 0), position and k of its last record, how many entries were claimed, the
-- time of its last record (ms), the number of its last entry, the last item of the outbox that has a record of it; its
-- last entry's date, and the id behind that; and the counters of its last entry, by their fields in `names`, of which
-- those are in `values`. `now` is when its next record is made, at the earliest. All in one string, since each more
-- that is read or written costs as much as this together.
function series.unpack(packed)
  local open, on, version, changing, position, k, claims, time, number, item, last, count, at =
    unpack_struct(STATE, packed)
  local values = { unpack_struct(DOUBLES[count], packed, at) }
  at, values[count + 1] = values[count + 1], nil
  return { open = open, on = on, version = version, changing = changing, position = position, k = k, claims = claims,
    time = time, number = number, item = item, date = sub(packed, at, at + min(last, DAY) - 1),
    id = sub(packed, at + DAY, at + last - 1), values = values, names = sub(packed, at + last), now = time, count = 0,
    aside = false }
end

function series.pack(state)
  local values, date, id = state.values, state.date, state.id
  return pack_struct(STATES[#values], state.open, state.on, state.version, state.changing, state.position, state.k,
    state.claims, state.time, state.number, state.item, #date + #id, #values, unpack(values)) .. date .. id
    .. state.names
end

-- Reads a series, given what the hash of its shard has of it, to add records. Answers its state; or nothing, and the
-- reply that refuses requests.
function series.read(shard, name, prefix, packed, clock_ms)
  local state = packed and series.unpack(packed)
  if not state or state.open == 0 then
    return nil, { 'unloaded' }
  elseif shard.damage then
    return nil, shard.damage
  end
  state.shard, state.name, state.prefix, state.clock_ms = shard, name, prefix, clock_ms
  state.now = max(clock_ms, state.time)
  return state
end

-- An entry with this id, if it is whole in an item of the outbox: the head of its run, its request, and the id before
-- it there, which the first has not.
local function entry(outbox, name, id, item)
  local place = series.text(item)
  local found = call('XRANGE', outbox, place, place)[1]
  local fields = found and found[2] or {}
  for i = 1, #fields, 2 do
    local requests, at, before = fields[i + 1], 1, ''
    while sub(fields[i], 1, #name) == name and at + 27 <= #requests do
      local known, _, bytes, rest = unpack_struct(series.REQUEST, requests, at)
      if known == id and rest + bytes - 1 <= #requests then
        return fields[i], sub(requests, at, rest + bytes - 1), before
      end
      at, before = rest + bytes, known
    end
  end
end

-- The same, if it is in one of the items from `first` to `last` that are so far apart.
function series.entry(outbox, name, id, first, last, apart)
  for item = first, last, apart do
    local head, request, before = entry(outbox, name, id, item)
    if head then
      return head, request, before
    end
  end
end

-- Why no request that depends on the definition or the day can be answered now, if so; under the rules that a caller
-- computed for a local day (allocate.lua).
function series.refusal(state, version, rules)
  if state.changing > 0 then
    return { 'changing', state.clock_ms - state.changing }
  elseif state.version ~= version then
    return { 'version', state.version }
  elseif state.now < rules[1] or state.now >= rules[2] then
    return { 'window', state.now }
  end
end

-- Which of the counters that the last entry raised this is, if it is one.
function series.at_hand(state, field)
  local nth = 0
  for name in string.gmatch(state.names, '%S+') do
    nth = nth + 1
    if name == field then
      return nth
    end
  end
end

-- The last value of a counter, before its first entry what it begins with less one. Those that the last entry did not
-- raise are kept aside, in a hash of the series.
function series.last(state, field, rules)
  local nth = series.at_hand(state, field)
  if nth then
    return state.values[nth]
  elseif state.aside and state.aside[field] then
    return state.aside[field]
  end
  local kept = call('HGET', state.prefix .. ':counters', field)
  return kept and tonumber(kept) or (state.position + state.count == 0 and rules[6] - 1 or 0)
end

-- Why the counters of a rendering cannot have these values, each plus `more`, if they cannot.
function series.beyond(rendering, rules, values, more)
  local counted, padding = rendering[3], rendering[4]
  for i = 1, #counted do
    if values[counted[i]] + more > COUNTER_MAX then
      return { 'exhausted' }
    end
  end
  if max(padding, COUNTER_DIGITS) * #counted <= rules[5] then -- they fit, however high the counters are
    return nil
  end
  local digits = 0
  for i = 1, #counted do
    digits = digits + max(padding, #series.text(values[counted[i]] + more))
  end
  return digits > rules[5] and { 'overflow', digits } or nil
end

-- The values that a rendering's counters get next, and how many entries can get theirs in a row: `most`, or one where
-- that may be too many; or nothing, and why there are none.
function series.count(state, rendering, rules, most)
  local values, names = {}, rendering[2]
  if names == state.names then
    for i = 1, #state.values do
      values[i] = state.values[i] + 1
    end
  else
    for field in string.gmatch(names, '%S+') do
      values[#values + 1] = series.last(state, field, rules) + 1
    end
  end
  if not series.beyond(rendering, rules, values, most - 1) then
    return values, most
  end
  local refused = series.beyond(rendering, rules, values, 0)
  return not refused and values, refused or 1
end

-- Adds an item to a shard's outbox, before anything else is written in the shard. Answers nothing, or the reply that
-- refuses requests: the outbox goes on to what was not written.
function series.add(shard, fields)
  local added = redis.pcall('XADD', shard.outbox, series.text(shard.written + 1) .. '-0', unpack(fields))
  if type(added) ~= 'table' then
    shard.written = shard.written + 1
    return nil
  elseif not string.find(added.err, 'equal or smaller', 1, true) then
    error(added)
  end
  return { 'damaged', 'the outbox goes on behind item ' .. series.text(shard.written) }
end
