-- What has been promised to run, in predicted tokens: a reservation a job, their sums in all and by owner.
-- Invariant: a sum is what its reservations add up to; a reservation is given back once, by the script that
-- ends its job; one that never became a job is given back when it falls due.
-- Keys: `reserved` hash job -> "<tokens> <owner>"; `load` hash of the sums; `due` set job -> when to look at it.
local RESERVED, LOAD, DUE = PREFIX .. 'reserved', PREFIX .. 'load', PREFIX .. 'due'
local ALL, WAITING = 'all', 'waiting'

local function owned_by(owner) return 'owner:' .. owner end

local function load_of(field) return tonumber(redis.call('HGET', LOAD, field) or '0') end

-- Fields that reach zero go, so that what nobody uses any more takes no room.
local function add_load(field, tokens)
  if redis.call('HINCRBY', LOAD, field, tokens) <= 0 then redis.call('HDEL', LOAD, field) end
end

local function reserve(id, tokens, owner)
  if redis.call('HSETNX', RESERVED, id, tokens .. ' ' .. owner) == 0 then return end
  add_load(ALL, tokens)
  add_load(owned_by(owner), tokens)
end

local function give_back(id)
  redis.call('ZREM', DUE, id)
  local record = redis.call('HGET', RESERVED, id)
  if not record then return end
  local tokens, owner = string.match(record, '^(%d+) (.*)$')
  redis.call('HDEL', RESERVED, id)
  add_load(ALL, -tokens)
  add_load(owned_by(owner), -tokens)
end
