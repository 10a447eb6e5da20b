#!lua
-- install.lua: bring a series' definition into Redis, or a newer version of it. Never replaces a newer one.
--
-- A series is installed closed, then the store marks it loaded, then it is installed again as open: a series that the
-- store calls loaded and Redis does not know has been lost.
--
-- KEYS[1]  shard hash: epoch, generation      KEYS[2]  series hash      KEYS[3]  outbox      KEYS[4]  bucket 0 of the
-- id index
-- ARGV[1]  epoch       ARGV[2]  generation    ARGV[3]  version          ARGV[4]  active, '1' or '0'
-- ARGV[5]  open, '1' or '0'
--
-- Replies 'stale', 'missing' (to be opened, but not installed), 'damaged' (no series hash, yet other keys of the
-- series), or 'ok'.

-- @include series.lua

if not series.is_current(KEYS[1], ARGV[1], ARGV[2]) then
  return 'stale'
end
local version = redis.call('HGET', KEYS[2], 'version')
if not version then
  if redis.call('EXISTS', KEYS[3], KEYS[4]) > 0 then
    return 'damaged'
  elseif ARGV[5] == '1' then
    return 'missing'
  end
  redis.call('HSET', KEYS[2], 'version', ARGV[3], 'open', '0', 'on', ARGV[4], 'at', series.new_at(0))
  redis.call('HSET', KEYS[4], '', '')
  return 'ok'
end
if tonumber(ARGV[3]) > tonumber(version) then
  redis.call('HSET', KEYS[2], 'version', ARGV[3], 'on', ARGV[4])
  redis.call('HDEL', KEYS[2], 'changing')
end
if ARGV[5] == '1' then
  redis.call('HSET', KEYS[2], 'open', '1')
end
return 'ok'
