-- index.lua: an index of ids, shared by the scripts that read or grow one: the ids of a series, a company's claims.
--
-- The index maps every id ever seen to its value. It is spread over small hashes ("buckets") that stay below
-- hash-max-listpack-entries, where an entry of a series costs about 35 bytes. The number of buckets follows from
-- the number of entries (linear hashing: one bucket is split for every LOAD entries), so it needs no state of its own.
-- Key:   <prefix>:<bucket number>     Field: the id's 16 bytes, for a claim then its type
-- Value: of a series, 8 bytes of fingerprint, the position in as few bytes as hold it, and the last 2 bytes of the
-- number of its item in the outbox; of a claim, the series' 16 bytes
-- Every bucket holds the field '' from its birth: one that is not there has been lost, and missing is never zero.

local index = {} -- luacheck: ignore 241 (the scripts that include this file use it)
local LOAD = 80
local SLICE = 1000
local PRIME = 4294967291 -- the largest below 2^32
local call, format = redis.call, string.format
local pack_struct, unpack_struct = struct.pack, struct.unpack
local VALUES, ITEMS = { '>c8I1I2', '>c8I2I2', '>c8I3I2', '>c8I4I2', '>c8I5I2', '>c8I6I2', '>c8I7I2' }, 65536

local function bucket_count(entries)
  return entries > LOAD and math.ceil(entries / LOAD) or 1
end

-- The largest power of two that is <= n, for n >= 1.
local function power_below(n)
  local power = 1
  while power * 2 <= n do
    power = power * 2
  end
  return power
end

-- Spreads ids of any pattern, such as 1, 2, 3: each step is exact below 2^53, and modulo a prime it mixes all bits.
local function bucket_of(ids, id)
  if ids.buckets == 1 then
    return 0
  end
  local a, b, c, d = unpack_struct('>I4I4I4I4', id)
  local hash = (a * 40503 + b * 69621 + c * 48271 + d * 16807) % PRIME * 1540483 % PRIME
  local bucket = hash % (ids.power * 2)
  return bucket < ids.buckets and bucket or hash % ids.power
end

local function bucket_key(ids, bucket)
  return ids.prefix .. ':' .. format('%d', bucket)
end

-- An index as it stands with `entries` entries; `lost` when a bucket was not there in which an id was looked for.
function index.open(prefix, entries)
  local buckets = bucket_count(entries)
  return { prefix = prefix, entries = entries, buckets = buckets, power = power_below(buckets), lost = false,
    split = false }
end

-- Fingerprint, position and item, big-endian.
function index.pack(fingerprint, position, item)
  local bytes, limit = 1, 256
  while position >= limit do
    bytes, limit = bytes + 1, limit * 256
  end
  return pack_struct(VALUES[bytes], fingerprint, position, item % ITEMS)
end

-- Fingerprint and position, and what the item leaves when divided by ITEMS.
function index.unpack(value)
  return unpack_struct(VALUES[#value - 10], value)
end

-- Of the items that wait in an outbox, behind `settled` and up to `written`, those that leave this: the first, what the
-- last is not beyond, and how far apart they are.
function index.items(left, settled, written)
  return settled + 1 + (left - settled - 1) % ITEMS, written, ITEMS
end

-- Finds an id's value: false when its bucket does not have it. The id is then new, unless the bucket is lost. Answers
-- the bucket's key, too.
function index.find(ids, id)
  local key = bucket_key(ids, bucket_of(ids, id))
  local found = call('HMGET', key, id, '')
  ids.lost = ids.lost or not (found[1] or found[2])
  return found[1], key
end

-- The buckets that a split touches: the one that is new and the one whose ids it shares.
local function split_pair(buckets)
  local created = buckets - 1
  return created, created - power_below(created)
end

-- Whether the index can grow to `after` entries: no bucket is lost, the one that each split divides is there, and its
-- new one is unused.
function index.can_grow(ids, after)
  if ids.lost then
    return false
  end
  for buckets = ids.buckets + 1, bucket_count(after) do
    local created, source = split_pair(buckets)
    if call('EXISTS', bucket_key(ids, created)) > 0 then
      return false
    elseif source < ids.buckets and call('EXISTS', bucket_key(ids, source)) == 0 then
      return false
    end
  end
  return true
end

-- Pushes pairs or fields in slices that Lua's stack can hold.
function index.call_sliced(command, key, arguments)
  for from = 1, #arguments, SLICE do
    call(command, key, unpack(arguments, from, math.min(from + SLICE - 1, #arguments)))
  end
end

local function split(ids)
  ids.buckets = ids.buckets + 1
  ids.power = power_below(ids.buckets)
  ids.split = true
  local created, source = split_pair(ids.buckets)
  local content = call('HGETALL', bucket_key(ids, source))
  local moved, gone = { '', '' }, {}
  for i = 1, #content, 2 do
    local id = content[i]
    if id ~= '' and bucket_of(ids, id) == created then
      moved[#moved + 1], moved[#moved + 2] = id, content[i + 1]
      gone[#gone + 1] = id
    end
  end
  index.call_sliced('HSET', bucket_key(ids, created), moved)
  index.call_sliced('HDEL', bucket_key(ids, source), gone)
end

-- Adds an id, which can_grow has allowed, and which was looked for in the bucket with this key.
function index.add(ids, id, value, key)
  ids.entries = ids.entries + 1
  if ids.entries > ids.buckets * LOAD then
    split(ids)
  end
  call('HSET', ids.split and bucket_key(ids, bucket_of(ids, id)) or key, id, value)
end
