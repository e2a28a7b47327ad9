-- ARGV[6]: job id. A waiting job ends here (2); a running one gets the flag (1). Returns 0 where there is nothing
-- to end.
local id = ARGV[6]
local job = redis.call('HMGET', job_key(id), 'state', 'attempt', 'seq', 'entry', 'deadline')
if job[1] == 'queued' then
  fail_cancelled(id, job[4], job[2], tonumber(job[3]))
  return 2
end
if job[1] ~= 'running' then return 0 end
keep_job(id, job[5]) -- first: a full server takes the rest after a write that needs no memory
redis.call('HSET', job_key(id), 'cancel', '1')
return 1
