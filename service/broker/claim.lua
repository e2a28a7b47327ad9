-- ARGV[6..10]: how many, lease ms, delivery limit, XAUTOCLAIM cursor, the claim's random name.
-- Returns {cursor, {id, job JSON, attempt, entry, seq, failed deliveries, ms left ('' for no deadline), ms waited,
-- stream entries of its earlier events}..., -- redelivered, cancelled, expired, poisoned}.
local limit, lease_ms, max_deliveries, cursor = tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8]), ARGV[9]
local run = ARGV[10]
local MAX_SCANS = 32 -- a scan looks at ten pending entries a wanted job; the cursor goes on next time

local function autoclaim(count)
  return redis.pcall('XAUTOCLAIM', JOBS, GROUP, CONSUMER, lease_ms, cursor, 'COUNT', count)
end

local function reclaim(found)
  for _ = 1, MAX_SCANS do
    local reply = autoclaim(limit - #found)
    if reply.err and string.find(reply.err, 'NOGROUP', 1, true) then
      redis.call('XGROUP', 'CREATE', JOBS, GROUP, '0', 'MKSTREAM')
      reply = autoclaim(limit - #found)
    end
    if reply.err then return reply end
    cursor = reply[1]
    for _, entry in ipairs(reply[2]) do
      if entry and entry[2] then found[#found + 1] = entry end -- 6.2 gives nil for deleted entries
    end
    if cursor == '0-0' or #found >= limit then return nil end
  end
end

local function read_new(found)
  if #found >= limit then return end
  local reply = redis.call('XREADGROUP', 'GROUP', GROUP, CONSUMER, 'COUNT', limit - #found, 'STREAMS', JOBS, '>')
  if not reply then return end
  for _, entry in ipairs(reply[1][2]) do found[#found + 1] = entry end
end

local now = now_ms()
local claims, count = {}, {redelivered = 0, cancelled = 0, expired = 0, poisoned = 0}

local function admit(entry, id)
  local job = redis.call('HMGET', job_key(id), 'job', 'state', 'attempt', 'seq', 'released', 'cancel', 'deadline')
  local state, attempt, seq = job[2], tonumber(job[3]), tonumber(job[4])
  if not job[1] or (state ~= 'queued' and state ~= 'running') then return drop_entry(entry) end
  if job[6] == '1' then
    count.cancelled = count.cancelled + 1
    return fail(id, entry, attempt, seq, 'cancelled', 'cancelled_error', 'The request was cancelled.')
  end
  if job[7] ~= '' and tonumber(job[7]) <= now then
    count.expired = count.expired + 1
    return fail(id, entry, attempt, seq, 'deadline_exceeded', 'timeout_error', 'The deadline passed in the queue.')
  end
  local failed = attempt - tonumber(job[5])
  if failed >= max_deliveries then
    count.poisoned = count.poisoned + 1
    redis.call('XADD', DEAD, 'MAXLEN', '~', MAX_DEAD, '*', 'id', id, 'attempt', attempt, 'reason', 'delivery_limit')
    return fail(id, entry, attempt, seq, 'delivery_limit', 'server_error',
                'The request failed on every worker that tried it.')
  end
  if attempt > 0 then count.redelivered = count.redelivered + 1 end
  redis.call('HSET', job_key(id), 'state', 'running', 'attempt', attempt + 1, 'run', run)
  keep_job(id, job[7])
  local left_ms = job[7] ~= '' and tonumber(job[7]) - now or ''
  local waited_ms = math.max(0, now - tonumber(string.match(entry, '^(%d+)-')))
  local earlier = seq > 0 and redis.call('XRANGE', events_key(id), '-', '+') or {}
  claims[#claims + 1] = {id, job[1], attempt + 1, entry, seq, failed, left_ms, waited_ms, earlier}
end

local found = {}
local failure = reclaim(found)
if failure then return failure end
read_new(found)
for _, entry in ipairs(found) do admit(entry[1], entry[2][2]) end
-- Nothing was there at this instant: every later job pushes a new element, so no wake can be missed.
if #found == 0 then redis.call('DEL', WAKE) end
return {cursor, claims, count.redelivered, count.cancelled, count.expired, count.poisoned}
