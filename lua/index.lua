-- index.lua: the id index of a series, shared by the scripts that read or grow it.
--
-- The index maps every id ever issued to its fingerprint and position. It is spread over small hashes ("buckets")
-- that stay below hash-max-listpack-entries, where an entry costs about 33 bytes. The number of buckets follows from
-- the number of entries (linear hashing: one bucket is split for every LOAD entries), so it needs no state of its own.
-- Key:   <prefix>:<bucket number>     Field: the id's 16 bytes     Value: 8 bytes of fingerprint, then the position
-- Every bucket holds the field '' from its birth: a bucket without it has been lost, and missing is never zero.

local index = {} -- luacheck: ignore 241 (the scripts that include this file use it)
local LOAD = 40

function index.bucket_count(entries)
  return math.max(1, math.ceil(entries / LOAD))
end

-- The largest power of two that is <= n, for n >= 1.
function index.power_below(n)
  local power = 1
  while power * 2 <= n do
    power = power * 2
  end
  return power
end

local function hash_id(id)
  local a, b, c, d = struct.unpack('>I4I4I4I4', id)
  local h = (((a * 31 + b) * 31 + c) * 31 + d) % 4294967296
  h = bit.bxor(h, bit.rshift(h, 16)) % 4294967296
  h = (h * 1540483) % 4294967296
  h = bit.bxor(h, bit.rshift(h, 15)) % 4294967296
  h = (h * 1299721) % 4294967296
  return bit.bxor(h, bit.rshift(h, 16)) % 4294967296
end

function index.bucket_of(id, buckets)
  local power = index.power_below(buckets)
  local h = hash_id(id)
  local bucket = h % (power * 2)
  if bucket >= buckets then
    bucket = h % power
  end
  return bucket
end

function index.bucket_key(prefix, bucket)
  return prefix .. ':' .. string.format('%.0f', bucket)
end

-- Position in as few big-endian bytes as hold it.
function index.pack_position(position)
  local packed = struct.pack('>I7', position)
  return (string.gsub(packed, '^%z+', ''))
end

local function unpack_value(value)
  local packed = string.sub(value, 9)
  return string.sub(value, 1, 8), struct.unpack('>I7', string.rep('\0', 7 - #packed) .. packed)
end

-- Finds id among `entries` entries: fingerprint and position; nothing when it is new; 'lost' when its bucket is gone.
function index.find(prefix, entries, id)
  local key = index.bucket_key(prefix, index.bucket_of(id, index.bucket_count(entries)))
  local found = redis.call('HMGET', key, '', id)
  if not found[1] then
    return 'lost'
  elseif found[2] then
    return unpack_value(found[2])
  end
end
