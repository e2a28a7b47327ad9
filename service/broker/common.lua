-- Put before every script of this directory. Invariants kept here: events of a job are appended in
-- sequence, a job ends once, and its entry leaves the stream in the same script that ends it.
-- Ownership lives in the job's hash (attempt), so one consumer name serves all workers: none is leaked.
-- ARGV[1..5]: key prefix, job ttl s, result ttl s, max events a job, max dead letters. ARGV[6..]: the script's own.
local PREFIX, JOB_TTL, RESULT_TTL = ARGV[1], ARGV[2], ARGV[3]
local MAX_EVENTS, MAX_DEAD = ARGV[4], ARGV[5]
local JOBS, DEAD, WAKE = PREFIX .. 'jobs', PREFIX .. 'dead', PREFIX .. 'wake'
local GROUP, CONSUMER = 'workers', 'worker'
local MAX_WAKES = 256

local function job_key(id) return PREFIX .. 'job:' .. id end
local function idempotency_key(key) return PREFIX .. 'idempotency:' .. key end
local function events_key(id) return PREFIX .. 'events:' .. id end

-- One blocked worker wakes per element; the bound only limits spurious wakes of an idle fleet.
local function wake()
  if redis.call('RPUSH', WAKE, '1') > MAX_WAKES then redis.call('LPOP', WAKE) end
end

local function drop_entry(entry)
  redis.call('XACK', JOBS, GROUP, entry)
  redis.call('XDEL', JOBS, entry)
end

local function append(id, attempt, seq, event)
  redis.call('XADD', events_key(id), 'MAXLEN', '~', MAX_EVENTS, attempt .. '-' .. seq, 'e', event)
end

local function end_job(id, entry, state, event, ended_by)
  redis.call('HSET', job_key(id), 'state', state, 'terminal', event, 'ended_by', ended_by)
  redis.call('EXPIRE', job_key(id), RESULT_TTL)
  redis.call('EXPIRE', events_key(id), RESULT_TTL)
  local key = redis.call('HGET', job_key(id), 'idempotency')
  if key and key ~= '' then redis.call('EXPIRE', idempotency_key(key), RESULT_TTL) end
  drop_entry(entry)
end

-- Ends a job that nobody runs, with an error event written by the queue itself.
local function fail(id, entry, attempt, seq, code, kind, message)
  local event = cjson.encode({v = 1, seq = seq + 1, attempt = tonumber(attempt), type = 'error',
                              data = {type = kind, code = code, message = message}})
  append(id, attempt, seq + 1, event)
  redis.call('HSET', job_key(id), 'seq', seq + 1)
  end_job(id, entry, 'error', event, '')
end
