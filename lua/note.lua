-- note.lua: what scripts share that record a skip or a void.

local note = {} -- luacheck: ignore 241 (the scripts that include this file use it)

-- Adds a skip or a void to the outbox, behind the last record. Answers whether the shard has turned dirty (1 or 0); or
-- nothing, and the reply that refuses it.
function note.append(state, states, said)
  local shard = state.shard
  local refused = series.add(shard, { 'note',
    cmsgpack.pack({ state.name, state.position, state.k + 1, state.item, unpack(said) }) })
  if refused then
    return nil, refused
  end
  state.k, state.item, state.time = state.k + 1, shard.written, state.now
  redis.call('HSET', shard.key, 'backlog', series.text(shard.backlog + 1), 'written', series.text(shard.written))
  redis.call('HSET', states, state.name, series.pack(state))
  return shard.backlog == 0 and 1 or 0
end
