-- Who is next among the jobs that wait: virtual token counters (Sheng et al., "Fairness in Serving Large
-- Language Models", OSDI 2024), on two levels: first the class (interactive, batch), then the owner within it.
-- Each backlogged owner has a counter of the tokens it was given; the least is next, and pays for what it takes.
-- Who comes back to the queue is lifted to the least counter of those in it: idle time earns no credit.
-- The classes' counters are weighted, so that batch work gets its share of the tokens and no more while
-- interactive work waits; whatever one class leaves, the other takes. Within an owner: first in, first out.
-- A model's workers take its jobs alone: to them the lanes of other models are not there. A lane is an owner's
-- jobs for one model, and each model has its own virtual time among the owners.
-- Keys: `wait:<class>:<lane>` list of "<tokens> <entry> <job>"; `fair:<class>` backlogged lane -> counter;
-- `served` hash: counters of classes, of lanes not backlogged, and each level's virtual time.
local SERVED = PREFIX .. 'served'
local INTERACTIVE, BATCH = 'interactive', 'batch'

local function lane_of(model, owner) return string.gsub(model, '|', '/') .. '|' .. owner end
local function lane_model(lane) return string.match(lane, '^(.-)|') or '' end
local function now_field(class, lane) return 'now:' .. class .. ':' .. lane_model(lane) end

local function wait_key(class, owner) return PREFIX .. 'wait:' .. class .. ':' .. owner end
local function fair_key(class) return PREFIX .. 'fair:' .. class end
local function served(field) return tonumber(redis.call('HGET', SERVED, field) or '0') end
local function backlogged(class) return redis.call('EXISTS', fair_key(class)) == 1 end

local function join(class, owner)
  if not backlogged(class) then
    local counter = math.max(served('class:' .. class), served('now'))
    redis.call('HSET', SERVED, 'class:' .. class, counter)
  end
  local counter = math.max(served(class .. ':' .. owner), served(now_field(class, owner)))
  redis.call('ZADD', fair_key(class), 'NX', counter, owner)
end

local function leave_if_empty(class, owner)
  if redis.call('EXISTS', wait_key(class, owner)) == 1 then return end
  local counter = redis.call('ZSCORE', fair_key(class), owner)
  if counter then redis.call('HSET', SERVED, class .. ':' .. owner, counter) end
  redis.call('ZREM', fair_key(class), owner)
  if backlogged(INTERACTIVE) or backlogged(BATCH) then return end
  -- Nobody waits: there is nothing to be fair about, and the sums start from nothing.
  redis.call('DEL', SERVED)
  redis.call('HDEL', LOAD, WAITING)
end

-- Carries all that is needed to take it off again, also when the job's hash has expired.
local function element(tokens, entry, id) return tokens .. ' ' .. entry .. ' ' .. id end

local function line_up(class, owner, tokens, entry, id)
  join(class, owner)
  redis.call('RPUSH', wait_key(class, owner), element(tokens, entry, id))
  add_load(WAITING, tokens)
end

-- Of a job that ends while it waits. It has cost its owner nothing.
local function step_out(class, owner, tokens, entry, id)
  if redis.call('LREM', wait_key(class, owner), 1, element(tokens, entry, id)) == 0 then return end
  add_load(WAITING, -tokens)
  leave_if_empty(class, owner)
end

local function next_class()
  if redis.call('EXISTS', fair_key(INTERACTIVE), fair_key(BATCH)) == 0 then return nil end -- an idle fleet asks this
  local interactive, batch = backlogged(INTERACTIVE), backlogged(BATCH)
  if interactive and batch then
    return served('class:' .. BATCH) < served('class:' .. INTERACTIVE) and BATCH or INTERACTIVE
  end
  return interactive and INTERACTIVE or batch and BATCH or nil
end

-- The first lane of the class with jobs that a worker of this model ('': of any) may run.
local function next_lane(class, model)
  local wanted = string.gsub(model, '|', '/')
  for _, lane in ipairs(redis.call('ZRANGE', fair_key(class), 0, -1)) do
    local its = lane_model(lane)
    if wanted == '' or its == '' or its == wanted then return lane end
  end
end

-- Class and lane, nil where nobody waits for this model.
local function next_of(model)
  local class = next_class()
  if not class then return nil end
  local lane = next_lane(class, model)
  if lane then return class, lane end
  class = class == BATCH and INTERACTIVE or BATCH
  lane = next_lane(class, model)
  if lane then return class, lane end
end

-- Takes the next job off the queue, nil where nobody waits. Then `charge` it if it runs, and `leave_if_empty`.
local function dequeue(model)
  local class, owner = next_of(model)
  if not class then return nil end
  local tokens, entry, id = string.match(redis.call('LPOP', wait_key(class, owner)) or '', '^(%d+) (%S+) (.*)$')
  if not id then -- never seen; but an error here would stop every worker
    leave_if_empty(class, owner)
    return dequeue(model)
  end
  add_load(WAITING, -tokens)
  return {id = id, entry = entry, class = class, owner = owner, tokens = tonumber(tokens)}
end

-- Before `leave_if_empty`, so that what an owner was given is remembered when it comes back.
local function charge(taken, batch_share)
  local class, owner = taken.class, taken.owner
  local weight = class == BATCH and 1 - batch_share or batch_share
  redis.call('HSET', SERVED, 'now', served('class:' .. class), now_field(class, owner),
             redis.call('ZSCORE', fair_key(class), owner))
  redis.call('HINCRBYFLOAT', SERVED, 'class:' .. class, taken.tokens * weight)
  redis.call('ZINCRBY', fair_key(class), taken.tokens, owner)
end
