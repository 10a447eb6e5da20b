#!lua
-- change.lua: begin a change of a series' definition. New ids are refused until install.lua brings a newer version.
--
-- KEYS[1]  shard hash: epoch, generation      KEYS[2]  series hash: version, position, changing
-- ARGV[1]  epoch       ARGV[2]  generation    ARGV[3]  the version that the change starts from
-- ARGV[4]  '1' when the change touches the numbering, which is fixed by the first entry
--
-- Replies {'stale'}, {'missing'}, {'version'} (another change came first), {'changing', since ms}, {'used'} (there
-- are entries), or {'ok'}.

local shard = redis.call('HMGET', KEYS[1], 'epoch', 'generation')
if shard[1] ~= ARGV[1] or shard[2] ~= ARGV[2] then
  return { 'stale' }
end
local series = redis.call('HMGET', KEYS[2], 'version', 'position', 'changing')
if not series[1] then
  return { 'missing' }
elseif series[3] then
  return { 'changing', tonumber(series[3]) }
elseif series[1] ~= ARGV[3] then
  return { 'version' }
elseif ARGV[4] == '1' and series[2] ~= '0' then
  return { 'used' }
end
local time = redis.call('TIME')
redis.call('HSET', KEYS[2], 'changing', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
return { 'ok' }
