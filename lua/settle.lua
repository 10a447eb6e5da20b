#!lua
-- settle.lua: drop from a shard's outbox what the store has committed. Safe to repeat.
--
-- KEYS[1]  shard hash: epoch, generation, backlog, written, settled; halted makes no difference      KEYS[2]  outbox
-- ARGV[1]  epoch       ARGV[2]  generation
-- ARGV[3]  the item behind which all were read       ARGV[4]  the item up to which all are in the store
-- ARGV[5]  how many records these items have
--
-- Replies {'stale'} (also when somebody else has settled some of these items), {'damaged', what}, and nothing was
-- dropped, or {'ok', records left}.

-- @include series.lua

local text = series.text

local h = redis.call('HMGET', KEYS[1], 'epoch', 'generation', 'backlog', 'written', 'settled')
if h[1] ~= ARGV[1] or h[2] ~= ARGV[2] then
  return { 'stale' }
end
local backlog, written, settled = tonumber(h[3]), tonumber(h[4]), tonumber(h[5])
local behind, upto, length = tonumber(ARGV[3]), tonumber(ARGV[4]), redis.call('XLEN', KEYS[2])
if length ~= written - settled then
  return { 'damaged', string.format('the outbox holds %d items instead of %d', length, written - settled) }
elseif upto > written then
  return { 'damaged', string.format('the store is at item %d, beyond %d', upto, written) }
elseif upto <= settled then
  return { 'ok', backlog }
elseif behind < settled then
  return { 'stale' }
elseif behind > settled then
  return { 'damaged', string.format('what is settled begins behind item %d instead of %d', behind, settled) }
end
redis.call('XTRIM', KEYS[2], 'MINID', '=', text(upto + 1))
redis.call('HSET', KEYS[1], 'backlog', text(backlog - tonumber(ARGV[5])), 'settled', text(upto))
return { 'ok', backlog - tonumber(ARGV[5]) }
