#!lua
-- change.lua: begin a change of a series' definition, or of a company's defaults. New ids are refused until
-- install.lua or defaults.lua brings a newer version.
--
-- KEYS[1]  shard hash: epoch, generation      KEYS[2]  series or company hash: version, position, after, changing
-- ARGV[1]  epoch       ARGV[2]  generation    ARGV[3]  the version that the change starts from
-- ARGV[4]  '1' when the change is only possible as long as there is no record
--
-- Replies {'stale'}, {'missing'}, {'version'} (another change came first), {'changing', for ms}, {'used'} (there
-- are records), or {'ok'}.

local shard = redis.call('HMGET', KEYS[1], 'epoch', 'generation')
if shard[1] ~= ARGV[1] or shard[2] ~= ARGV[2] then
  return { 'stale' }
end
local series = redis.call('HMGET', KEYS[2], 'version', 'position', 'changing', 'after')
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if not series[1] then
  return { 'missing' }
elseif series[3] then
  return { 'changing', now_ms - tonumber(series[3]) }
elseif series[1] ~= ARGV[3] then
  return { 'version' }
elseif ARGV[4] == '1' and (series[2] ~= '0' or series[4] ~= '0') then
  return { 'used' }
end
redis.call('HSET', KEYS[2], 'changing', string.format('%.0f', now_ms))
return { 'ok' }
