-- ARGV[6..10]: job id, job JSON, ms until its deadline ('' for none), idempotency key ('' for none), fingerprint;
-- then name and bytes of each image. Returns 1, or 0 where the id is known or a living job has the key.
local id, key = ARGV[6], ARGV[9]
if redis.call('EXISTS', job_key(id)) == 1 then
  wake(model_of(id)) -- harmless; a write, so that who waits for replicas behind this call waits for the job
  return 0
end
if key ~= '' then
  local holder = redis.call('HGET', idempotency_key(key), 'job')
  if holder and redis.call('EXISTS', job_key(holder)) == 1 then
    give_back(id)
    return 0
  end
end
enqueue(id, ARGV[7], ARGV[8], key, ARGV[10], 0, 0, 11, #ARGV)
return 1
