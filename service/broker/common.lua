-- Put before every script of this directory, with ledger.lua, fair.lua and life.lua behind it.
-- Invariants kept here: events of a job are appended in sequence, a job ends once, and its entry leaves the
-- stream in the same script that ends it. Every unfinished job is in the stream; of those that wait, fair.lua
-- says who is next.
-- Ownership lives in the job's hash (attempt and run), so one consumer name serves all workers: none is
-- leaked. `run` is the claim's own random name: a server that forgot a claim would give its number again.
-- The only clock is the server's. A full server (`noeviction`) refuses the first write of `submit`; what ends
-- or carries on an accepted job begins with a write that needs no memory, after which Redis lets it go on.
-- ARGV[1..5]: key prefix, job ttl s, result ttl s, max events a job, max dead letters. ARGV[6..]: the script's own.
local PREFIX, JOB_TTL, RESULT_TTL = ARGV[1], ARGV[2], ARGV[3]
local MAX_EVENTS, MAX_DEAD = ARGV[4], ARGV[5]
local JOBS, DEAD, WAKE = PREFIX .. 'jobs', PREFIX .. 'dead', PREFIX .. 'wake'
local GROUP, CONSUMER = 'workers', 'worker'
local MAX_WAKES = 256
local SLACK_S = 60 -- between a deadline and the end of what is kept for the job

-- Names what is in this server: the first name offered to an empty one, behind the name of the server's own
-- life. Another name than before: all was lost, or (a restart, a failover) the last writes may have been.
-- offered: never used before, or the data that is lost and the new data could have the same name.
local function data_name(offered)
  local key = PREFIX .. 'generation'
  if redis.call('EXISTS', key) == 0 then redis.pcall('SET', key, offered) end -- a full server does not take it
  local about = redis.pcall('INFO', 'server') -- a managed server may keep it to itself
  local life = type(about) == 'string' and string.match(about, 'run_id:(%w+)') or ''
  return life .. ':' .. (redis.call('GET', key) or '')
end

local function job_key(id) return PREFIX .. 'job:' .. id end
local function idempotency_key(key) return PREFIX .. 'idempotency:' .. key end
local function events_key(id) return PREFIX .. 'events:' .. id end

local function now_ms()
  local clock = redis.call('TIME')
  return clock[1] * 1000 + math.floor(clock[2] / 1000)
end

-- deadline: unix ms, '' for none. A job is kept at least until its deadline can be acted on.
local function keep_job(id, deadline)
  local left_s = deadline and deadline ~= '' and (tonumber(deadline) - now_ms()) / 1000 + SLACK_S or 0
  redis.call('EXPIRE', job_key(id), math.ceil(math.max(JOB_TTL, left_s)))
end

-- The list on which idle workers of a model block; that of no model wakes any worker.
local function wake_key(model) return model == '' and WAKE or WAKE .. ':' .. model end

-- One blocked worker wakes per element; the bound only limits spurious wakes of an idle fleet.
local function wake(model)
  if redis.call('RPUSH', wake_key(model), '1') > MAX_WAKES then redis.call('LPOP', wake_key(model)) end
end

-- Whose card the job was checked against; '' where any worker may run it.
local function model_of(id) return redis.call('HGET', job_key(id), 'model') or '' end

-- The entry stays pending but looks idle for days, so the next claim takes it.
local function set_free(entry)
  redis.pcall('XCLAIM', JOBS, GROUP, CONSUMER, 0, entry, 'IDLE', 1000000000, 'JUSTID')
end

local function offer(entry, id)
  set_free(entry)
  wake(id and model_of(id) or '')
end
