#!lua
-- restore.lua: put back what the store holds into an index that has been emptied, and what stands beside it.
--
-- KEYS[1]  shard hash: epoch, generation     KEYS[2]  hash of the shard's series, or of the company
-- KEYS[3]  prefix of the index of ids, or of claims (index.lua)
-- ARGV[1]  epoch       ARGV[2]  generation   ARGV[3]  the field that says how many the index has: the series' id, or
--          claims
-- ARGV[4]  how many the index has before     ARGV[5]  ids and their values in turn, as the index keeps them, each
--          behind its length (4 bytes)
-- ARGV[6]  the series' state, set with the last of them; else ''
--
-- Replies 'stale', 'damaged' (the index holds another number of ids, or one of these), or 'ok'.

-- @include index.lua
-- @include series.lua

if not series.is_current(KEYS[1], ARGV[1], ARGV[2]) then
  return 'stale'
end
local before, restored, at = tonumber(ARGV[4]), {}, 1
while at <= #ARGV[5] do
  local bytes = struct.unpack('>I4', ARGV[5], at)
  restored[#restored + 1] = string.sub(ARGV[5], at + 4, at + 3 + bytes)
  at = at + 4 + bytes
end
local after = before + #restored / 2
local counted = redis.call('HGET', KEYS[2], ARGV[3])
local state = counted and ARGV[3] ~= 'claims' and series.unpack(counted)
if not counted or (state and state.position or tonumber(counted)) ~= before then
  return 'damaged'
end
local ids, buckets = index.open(KEYS[3], before), {}
for i = 1, #restored, 2 do
  local id = restored[i]
  local known, bucket = index.find(ids, id)
  if known or buckets[id] then
    return 'damaged'
  end
  buckets[id] = bucket
end
if not index.can_grow(ids, after) then
  return 'damaged'
end
for i = 1, #restored, 2 do
  index.add(ids, restored[i], restored[i + 1], buckets[restored[i]])
end
if state then
  state.position = after
end
redis.call('HSET', KEYS[2], ARGV[3], ARGV[6] ~= '' and ARGV[6] or state and series.pack(state) or series.text(after))
return 'ok'
