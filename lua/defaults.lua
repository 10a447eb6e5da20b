#!lua
-- defaults.lua: bring a company's default series into Redis, or a newer version of them. Never replaces a newer one.
--
-- As with a series (install.lua), a company is installed closed, marked loaded in the store, then opened.
--
-- KEYS[1]  shard hash: epoch, generation      KEYS[2]  company hash      KEYS[3]  bucket 0 of its index of claims
-- ARGV[1]  epoch       ARGV[2]  generation    ARGV[3]  version           ARGV[4]  open, '1' or '0'
-- ARGV[5..]            a type and the 16 bytes of its default series, and so on
--
-- Replies 'stale', 'missing' (to be opened, but not installed), 'damaged' (no company hash, yet claims), or 'ok'.

-- @include series.lua

if not series.is_current(KEYS[1], ARGV[1], ARGV[2]) then
  return 'stale'
end
local version = redis.call('HGET', KEYS[2], 'version')
if not version then
  if redis.call('EXISTS', KEYS[3]) > 0 then
    return 'damaged'
  elseif ARGV[4] == '1' then
    return 'missing'
  end
  redis.call('HSET', KEYS[2], 'version', '0', 'open', '0', 'claims', '0')
  redis.call('HSET', KEYS[3], '', '')
  version = '0'
end
if tonumber(ARGV[3]) > tonumber(version) then
  for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
    if string.sub(field, 1, 8) == 'default:' then
      redis.call('HDEL', KEYS[2], field)
    end
  end
  for i = 5, #ARGV, 2 do
    redis.call('HSET', KEYS[2], 'default:' .. ARGV[i], ARGV[i + 1])
  end
  redis.call('HSET', KEYS[2], 'version', ARGV[3])
  redis.call('HDEL', KEYS[2], 'changing')
end
if ARGV[4] == '1' then
  redis.call('HSET', KEYS[2], 'open', '1')
end
return 'ok'
