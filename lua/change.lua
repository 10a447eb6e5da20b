#!lua
-- change.lua: begin a change of a series' definition, or of a company's defaults. New ids are refused until
-- install.lua or defaults.lua brings a newer version.
--
-- KEYS[1]  shard hash: epoch, generation      KEYS[2]  series or company hash: version, changing, and of a series at
-- ARGV[1]  epoch       ARGV[2]  generation    ARGV[3]  the version that the change starts from
-- ARGV[4]  '1' when the change is only possible as long as there is no record
--
-- Replies {'stale'}, {'missing'}, {'version'} (another change came first), {'changing', for ms}, {'used'} (there
-- are records), or {'ok'}.

-- @include series.lua

if not series.is_current(KEYS[1], ARGV[1], ARGV[2]) then
  return { 'stale' }
end
local known = redis.call('HMGET', KEYS[2], 'version', 'changing', 'at')
local now_ms = series.clock_ms()
if not known[1] then
  return { 'missing' }
elseif known[2] then
  return { 'changing', now_ms - tonumber(known[2]) }
elseif known[1] ~= ARGV[3] then
  return { 'version' }
elseif ARGV[4] == '1' and series.is_used(known[3]) then
  return { 'used' }
end
redis.call('HSET', KEYS[2], 'changing', series.text(now_ms))
return { 'ok' }
