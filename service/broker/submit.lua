-- ARGV[6..10]: job id, job JSON, deadline in unix ms ('' for none), idempotency key ('' for none), fingerprint.
-- Returns 1, or 0 where the id is known or a living job has the key.
local id, body, deadline, key, fingerprint = ARGV[6], ARGV[7], ARGV[8], ARGV[9] or '', ARGV[10] or ''
if redis.call('EXISTS', job_key(id)) == 1 then return 0 end
if key ~= '' then
  local holder = redis.call('HGET', idempotency_key(key), 'job')
  if holder and redis.call('EXISTS', job_key(holder)) == 1 then return 0 end
  redis.call('HSET', idempotency_key(key), 'job', id, 'fingerprint', fingerprint)
  redis.call('EXPIRE', idempotency_key(key), JOB_TTL)
end
local entry = redis.call('XADD', JOBS, '*', 'id', id)
redis.call('HSET', job_key(id), 'job', body, 'state', 'queued', 'attempt', 0, 'seq', 0, 'released', 0,
           'entry', entry, 'deadline', deadline, 'idempotency', key)
redis.call('EXPIRE', job_key(id), JOB_TTL)
wake()
return 1
