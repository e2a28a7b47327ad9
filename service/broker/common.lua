-- Put before every script of this directory. Invariants kept here: events of a job are appended in
-- sequence, a job ends once, and its entry leaves the stream in the same script that ends it.
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

-- One blocked worker wakes per element; the bound only limits spurious wakes of an idle fleet.
local function wake()
  if redis.call('RPUSH', WAKE, '1') > MAX_WAKES then redis.call('LPOP', WAKE) end
end

-- The entry stays pending but looks idle for days, so the next claim takes it.
local function offer(entry)
  redis.pcall('XCLAIM', JOBS, GROUP, CONSUMER, 0, entry, 'IDLE', 1000000000, 'JUSTID')
  wake()
end

local function drop_entry(entry)
  redis.call('XACK', JOBS, GROUP, entry)
  redis.call('XDEL', JOBS, entry)
end

local function append(id, attempt, seq, event)
  redis.call('XADD', events_key(id), 'MAXLEN', '~', MAX_EVENTS, attempt .. '-' .. seq, 'e', event)
end

-- Puts an unknown job behind the others. left_ms: until its deadline, '' for none. blobs_from, blobs_to: the
-- ARGV with sha256 and bytes of each image; a blob that another job waits with never expires sooner for it.
local function enqueue(id, body, left_ms, key, fingerprint, attempt, seq, blobs_from, blobs_to)
  local entry = redis.call('XADD', JOBS, '*', 'id', id) -- the first write: this a full server refuses
  local deadline = left_ms ~= '' and string.format('%.0f', now_ms() + tonumber(left_ms)) or ''
  local blob_ttl = left_ms ~= '' and math.max(1, math.ceil(tonumber(left_ms) / 1000)) + SLACK_S or tonumber(JOB_TTL)
  for i = blobs_from, blobs_to - 1, 2 do
    local blob = PREFIX .. 'blob:' .. ARGV[i]
    local ttl = redis.call('TTL', blob)
    if ttl == -2 then redis.call('SET', blob, ARGV[i + 1], 'EX', blob_ttl)
    elseif ttl < blob_ttl then redis.call('EXPIRE', blob, blob_ttl) end
  end
  redis.call('HSET', job_key(id), 'job', body, 'state', 'queued', 'attempt', attempt, 'seq', seq,
             'released', attempt, 'entry', entry, 'deadline', deadline, 'idempotency', key)
  keep_job(id, deadline)
  if key ~= '' then
    redis.call('HSET', idempotency_key(key), 'job', id, 'fingerprint', fingerprint)
    redis.call('EXPIRE', idempotency_key(key), redis.call('TTL', job_key(id)))
  end
  wake()
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
  redis.call('EXPIRE', job_key(id), RESULT_TTL) -- needs no memory, see above
  local event = cjson.encode({v = 1, seq = seq + 1, attempt = tonumber(attempt), type = 'error',
                              data = {type = kind, code = code, message = message}})
  append(id, attempt, seq + 1, event)
  redis.call('HSET', job_key(id), 'seq', seq + 1)
  end_job(id, entry, 'error', event, '')
end
