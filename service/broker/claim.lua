-- ARGV[6..12]: how many, lease ms, delivery limit, XAUTOCLAIM cursor, the claim's random name, batch work's
-- share of the tokens (0..1), the worker's model ('' for any).
-- Returns {cursor, {id, job JSON, attempt, entry, seq, failed deliveries, ms left ('' for no deadline), ms waited,
-- stream entries of its earlier events}..., -- redelivered, cancelled, expired, poisoned}.
local limit, lease_ms, max_deliveries, cursor = tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8]), ARGV[9]
local run, batch_share, model = ARGV[10], tonumber(ARGV[11]), ARGV[12]
local MAX_SCANS = 32 -- a scan looks at ten pending entries a wanted job; the cursor goes on next time
local MAX_DROPS = 64 -- waiting jobs that turn out to have ended, before the script gives others their turn

local function autoclaim(count)
  return redis.pcall('XAUTOCLAIM', JOBS, GROUP, CONSUMER, lease_ms, cursor, 'COUNT', count)
end

-- A group that is gone took its list of pending entries with it: the leases of what runs begin anew.
local function make_group()
  redis.call('XGROUP', 'CREATE', JOBS, GROUP, '0', 'MKSTREAM')
  for _, entry in ipairs(redis.call('XRANGE', JOBS, '-', '+')) do
    if redis.call('HGET', job_key(entry[2][2]), 'attempt') ~= '0' then
      redis.call('XCLAIM', JOBS, GROUP, CONSUMER, 0, entry[1], 'FORCE', 'JUSTID')
    end
  end
end

local now = now_ms()

-- What lapsed for another model is put back as it lay: its own workers find it. What only has to be ended is
-- ended by any, since of its own there may be none any more.
local function is_ours(entry)
  local job = redis.call('HMGET', job_key(entry[2][2]), 'model', 'cancel', 'deadline')
  if model == '' or not job[1] or job[1] == '' or job[1] == model then return true end
  if job[2] == '1' or (job[3] and job[3] ~= '' and tonumber(job[3]) <= now) then return true end
  set_free(entry[1])
  return false
end

local function reclaim(found)
  for _ = 1, MAX_SCANS do
    local reply = autoclaim(limit - #found)
    if reply.err and string.find(reply.err, 'NOGROUP', 1, true) then
      make_group()
      reply = autoclaim(limit - #found)
    end
    if reply.err then return reply end
    cursor = reply[1]
    for _, entry in ipairs(reply[2]) do
      -- 6.2 gives nil for deleted entries.
      if entry and entry[2] and is_ours(entry) then found[#found + 1] = entry end
    end
    if cursor == '0-0' or #found >= limit then return nil end
  end
end

local claims, count = {}, {redelivered = 0, cancelled = 0, expired = 0, poisoned = 0}

local alone = false

-- True where the job runs now.
local function admit(entry, id)
  local job = redis.call('HMGET', job_key(id), 'job', 'state', 'attempt', 'seq', 'released', 'cancel', 'deadline',
                         'run', 'unheard')
  local state, attempt, seq = job[2], tonumber(job[3]), tonumber(job[4])
  if not job[1] or (state ~= 'queued' and state ~= 'running') then
    drop_entry(entry)
    give_back(id)
    return false
  end
  if job[6] == '1' then
    count.cancelled = count.cancelled + 1
    fail_cancelled(id, entry, attempt, seq)
    return false
  end
  if job[7] ~= '' and tonumber(job[7]) <= now then
    count.expired = count.expired + 1
    fail_expired(id, entry, attempt, seq)
    return false
  end
  local failed = attempt - tonumber(job[5])
  if state == 'running' and job[9] and job[9] == job[8] then -- its claim may never have arrived: nobody failed
    failed = failed - 1
    redis.call('HDEL', job_key(id), 'unheard')
    redis.call('HINCRBY', job_key(id), 'released', 1)
  end
  if failed >= max_deliveries then
    count.poisoned = count.poisoned + 1
    redis.call('XADD', DEAD, 'MAXLEN', '~', MAX_DEAD, '*', 'id', id, 'attempt', attempt, 'reason', 'delivery_limit')
    fail(id, entry, attempt, seq, 'delivery_limit', 'server_error', 'The request failed on every worker that tried it.')
    return false
  end
  if failed > 0 and failed + 1 >= max_deliveries then
    -- Its last chance. Of several such jobs one may kill the worker, and the others would end with it.
    if alone then
      offer(entry, id)
      return false
    end
    alone = true
  end
  if attempt > 0 then count.redelivered = count.redelivered + 1 end
  redis.call('HSET', job_key(id), 'state', 'running', 'attempt', attempt + 1, 'run', run, 'unheard', run)
  keep_job(id, job[7])
  local left_ms = job[7] ~= '' and tonumber(job[7]) - now or ''
  local waited_ms = math.max(0, now - tonumber(string.match(entry, '^(%d+)-')))
  local earlier = seq > 0 and redis.call('XRANGE', events_key(id), '-', '+') or {}
  claims[#claims + 1] = {id, job[1], attempt + 1, entry, seq, failed, left_ms, waited_ms, earlier}
  return true
end

local exhausted = false

local function take_waiting()
  local drops = 0
  while #claims < limit and drops < MAX_DROPS do
    local taken = dequeue(model)
    if not taken then
      exhausted = true
      return
    end
    local runs = false
    if redis.call('HGET', job_key(taken.id), 'state') ~= 'running' then
      -- Puts the entry among the pending ones, whose idle time is the lease.
      redis.call('XCLAIM', JOBS, GROUP, CONSUMER, 0, taken.entry, 'FORCE', 'JUSTID')
      runs = admit(taken.entry, taken.id)
    end
    if runs then charge(taken, batch_share) else drops = drops + 1 end
    leave_if_empty(taken.class, taken.owner)
  end
end

local found = {}
local failure = reclaim(found)
if failure then return failure end
count.expired = count.expired + sweep(now)
for _, entry in ipairs(found) do admit(entry[1], entry[2][2]) end
take_waiting()
-- Nothing was there at this instant: every later job pushes a new element, so no wake can be missed.
if #found == 0 and #claims == 0 and exhausted then redis.call('DEL', WAKE, wake_key(model)) end
return {cursor, claims, count.redelivered, count.cancelled, count.expired, count.poisoned}
