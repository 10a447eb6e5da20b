#!lua
-- enroll.lua: tie one shard of this server to the store's epoch and generation. Safe to repeat.
--
-- KEYS[1]  shard hash: epoch, generation, layout, backlog, written, settled
-- ARGV[1]  epoch       ARGV[2]  generation that the shard must be at, '0' for a first start
-- ARGV[3]  generation to raise it to     ARGV[4]  the layout that what is written from now on has
--
-- Replies 'missing' (no shard hash, and this is no first start), 'foreign' (another epoch), 'generation' (neither of
-- the two), or 'ok'.

local shard = redis.call('HMGET', KEYS[1], 'epoch', 'generation')
if not shard[1] then
  if ARGV[2] ~= '0' then
    return 'missing'
  end
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'generation', ARGV[3], 'layout', ARGV[4], 'backlog', '0',
    'written', '0', 'settled', '0')
  return 'ok'
elseif shard[1] ~= ARGV[1] then
  return 'foreign'
elseif shard[2] ~= ARGV[2] and shard[2] ~= ARGV[3] then
  return 'generation'
end
redis.call('HSET', KEYS[1], 'generation', ARGV[3])
return 'ok'
