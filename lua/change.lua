#!lua
-- change.lua: begin a change of a series' definition, or of a company's defaults. New ids are refused until
-- install.lua or defaults.lua brings a newer version.
--
-- KEYS[1]  shard hash: epoch, generation      KEYS[2]  hash of the shard's series, or company hash: version, changing
-- ARGV[1]  epoch       ARGV[2]  generation    ARGV[3]  the version that the change starts from
-- ARGV[4]  the series' id, '' for a company   ARGV[5]  '1' when the change is only possible as long as there is no
--          record
--
-- Replies {'stale'}, {'missing'}, {'version'} (another change came first), {'changing', for ms}, {'used'} (there
-- are records), or {'ok'}.

-- @include series.lua

if not series.is_current(KEYS[1], ARGV[1], ARGV[2]) then
  return { 'stale' }
end
local now_ms = series.clock_ms()
local state, known
if ARGV[4] == '' then
  known = redis.call('HMGET', KEYS[2], 'version', 'changing')
else
  local packed = redis.call('HGET', KEYS[2], ARGV[4])
  state = packed and series.unpack(packed)
  known = state and { series.text(state.version), state.changing > 0 and state.changing } or {}
end
if not known[1] then
  return { 'missing' }
elseif known[2] then
  return { 'changing', now_ms - tonumber(known[2]) }
elseif known[1] ~= ARGV[3] then
  return { 'version' }
elseif ARGV[5] == '1' and (state.position > 0 or state.k > 0) then
  return { 'used' }
end
if state then
  state.changing = now_ms
  redis.call('HSET', KEYS[2], ARGV[4], series.pack(state))
else
  redis.call('HSET', KEYS[2], 'changing', series.text(now_ms))
end
return { 'ok' }
