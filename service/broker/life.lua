-- How a job begins, is heard of, and ends: once, with its terminal event, its entry out of the stream, its
-- reservation given back.
local LOOK_AGAIN_MS = 30000
local MAX_LEFT_MS = 1e12 -- 31 years; Redis takes no expiry in more than some digits

local function drop_entry(entry)
  redis.call('XACK', JOBS, GROUP, entry)
  redis.call('XDEL', JOBS, entry)
end

local function append(id, attempt, seq, event)
  redis.call('XADD', events_key(id), 'MAXLEN', '~', MAX_EVENTS, attempt .. '-' .. seq, 'e', event)
end

-- A picture under its job's name (`picture_name`) is that job's alone. Under a bare digest, as older gateways
-- name them, it may be the picture of others too, who are not counted anywhere: that goes when its time is up.
local function blob_key(name) return PREFIX .. 'blob:' .. name end
local function is_own(id, name) return string.sub(name, 1, #id + 1) == id .. ':' end

-- Before the job's hash goes. What a script older than this leaves behind goes when its time is up.
local function drop_pictures(id)
  for name in string.gmatch(redis.call('HGET', job_key(id), 'pictures') or '', '%S+') do
    redis.call('UNLINK', blob_key(name))
  end
end

-- Puts an unknown job behind the others. left_ms: until its deadline, '' for none. blobs_from, blobs_to: the
-- ARGV with name and bytes of each image; a blob that another job waits with never expires sooner for it.
local function enqueue(id, body, left_ms, key, fingerprint, attempt, seq, blobs_from, blobs_to)
  local asked = cjson.decode(body)
  local owner, priority, model = asked.owner or '', asked.priority or INTERACTIVE, asked.model or ''
  local lane = lane_of(model, owner)
  local tokens = string.format('%.0f', math.max(1, asked.predicted_tokens or 1))
  local left = left_ms ~= '' and tonumber(left_ms) or 0
  if left > MAX_LEFT_MS then error('the deadline is too far away') end -- before anything is written
  local deadline = left_ms ~= '' and string.format('%.0f', now_ms() + left) or ''
  local blob_ttl = left_ms ~= '' and math.max(1, math.ceil(left / 1000)) + SLACK_S or tonumber(JOB_TTL)
  local entry = redis.call('XADD', JOBS, '*', 'id', id) -- the first write: this a full server refuses
  local own = {}
  for i = blobs_from, blobs_to - 1, 2 do
    local blob = blob_key(ARGV[i])
    if is_own(id, ARGV[i]) then own[#own + 1] = ARGV[i] end
    local ttl = redis.call('TTL', blob)
    if ttl == -2 then redis.call('SET', blob, ARGV[i + 1], 'EX', blob_ttl)
    elseif ttl < blob_ttl then redis.call('EXPIRE', blob, blob_ttl) end
  end
  redis.call('HSET', job_key(id), 'job', body, 'state', 'queued', 'attempt', attempt, 'seq', seq,
             'released', attempt, 'entry', entry, 'deadline', deadline, 'idempotency', key,
             'lane', lane, 'priority', priority, 'tokens', tokens, 'model', model, 'pictures', table.concat(own, ' '))
  keep_job(id, deadline)
  reserve(id, tokens, owner) -- where its reservation was lost, or it never had one
  redis.call('ZADD', DUE, deadline == '' and now_ms() + JOB_TTL * 1000 or deadline, id)
  line_up(priority, lane, tokens, entry, id)
  if key ~= '' then
    redis.call('HSET', idempotency_key(key), 'job', id, 'fingerprint', fingerprint)
    redis.call('EXPIRE', idempotency_key(key), redis.call('TTL', job_key(id)))
  end
  wake(model)
end

local function end_job(id, entry, state, event, ended_by)
  redis.call('HSET', job_key(id), 'state', state, 'terminal', event, 'ended_by', ended_by)
  redis.call('EXPIRE', job_key(id), RESULT_TTL)
  redis.call('EXPIRE', events_key(id), RESULT_TTL)
  local key = redis.call('HGET', job_key(id), 'idempotency')
  if key and key ~= '' then redis.call('EXPIRE', idempotency_key(key), RESULT_TTL) end
  drop_pictures(id)
  drop_entry(entry)
  give_back(id)
end

-- Ends a job that nobody runs, with an error event written by the queue itself.
local function fail(id, entry, attempt, seq, code, kind, message)
  redis.call('EXPIRE', job_key(id), RESULT_TTL) -- needs no memory, see common.lua
  local job = redis.call('HMGET', job_key(id), 'priority', 'lane', 'tokens')
  if job[1] then step_out(job[1], job[2], job[3], entry, id) end
  local event = cjson.encode({v = 1, seq = seq + 1, attempt = tonumber(attempt), type = 'error',
                              data = {type = kind, code = code, message = message}})
  append(id, attempt, seq + 1, event)
  redis.call('HSET', job_key(id), 'seq', seq + 1)
  end_job(id, entry, 'error', event, '')
end

local function fail_cancelled(id, entry, attempt, seq)
  fail(id, entry, attempt, seq, 'cancelled', 'cancelled_error', 'The request was cancelled.')
end

local function fail_expired(id, entry, attempt, seq)
  fail(id, entry, attempt, seq, 'deadline_exceeded', 'timeout_error', 'The deadline passed in the queue.')
end

-- Looks at one job whose time is up, or is said to be. Returns 1 where it waited and ends here.
local function expire_one(id, now)
  local job = redis.call('HMGET', job_key(id), 'state', 'entry', 'attempt', 'seq', 'deadline')
  if job[1] == 'running' then -- its worker ends it, or the next one finds it expired
    redis.call('ZADD', DUE, now + LOOK_AGAIN_MS, id)
  elseif job[1] ~= 'queued' then -- it never became a job, or its hash has expired
    give_back(id)
  elseif job[5] == '' or tonumber(job[5]) > now then
    redis.call('ZADD', DUE, job[5] == '' and now + JOB_TTL * 1000 or job[5], id)
  else
    fail_expired(id, job[2], job[3], tonumber(job[4]))
    return 1
  end
  return 0
end

-- A few of the jobs whose time is up; returns how many ended here.
local function sweep(now)
  local expired = 0
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', DUE, '-inf', now, 'LIMIT', 0, 16)) do
    expired = expired + expire_one(id, now)
  end
  return expired
end
