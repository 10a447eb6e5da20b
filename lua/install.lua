#!lua
-- install.lua: bring a series' definition into Redis, or a newer version of it. Never replaces a newer one.
--
-- A series is installed closed, then the store marks it loaded, then it is installed again as open: a series that the
-- store calls loaded and Redis does not know has been lost.
--
-- KEYS[1]  shard hash: epoch, generation      KEYS[2]  hash of the shard's series
-- KEYS[3]  bucket 0 of the series' id index
-- ARGV[1]  epoch       ARGV[2]  generation    ARGV[3]  series id        ARGV[4]  version
-- ARGV[5]  active, '1' or '0'                 ARGV[6]  open, '1' or '0'
--
-- Replies 'stale', 'missing' (to be opened, but not installed), 'damaged' (Redis does not know the series, yet has its
-- index), or 'ok'.

-- @include series.lua

if not series.is_current(KEYS[1], ARGV[1], ARGV[2]) then
  return 'stale'
end
local packed, version, on = redis.call('HGET', KEYS[2], ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if not packed then
  if redis.call('EXISTS', KEYS[3]) > 0 then
    return 'damaged'
  elseif ARGV[6] == '1' then
    return 'missing'
  end
  redis.call('HSET', KEYS[2], ARGV[3], series.pack({ open = 0, on = on, version = version, changing = 0, position = 0,
    k = 0, claims = 0, time = 0, number = 0, item = 0, date = '', id = '', values = {}, names = '' }))
  redis.call('HSET', KEYS[3], '', '')
  return 'ok'
end
local state = series.unpack(packed)
if version > state.version then
  state.version, state.on, state.changing = version, on, 0
end
if ARGV[6] == '1' then
  state.open = 1
end
redis.call('HSET', KEYS[2], ARGV[3], series.pack(state))
return 'ok'
