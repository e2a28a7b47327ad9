-- ARGV[6..10]: job id, attempt, run, entry, what to take off the failed deliveries (1 or 0).
local id, attempt, run, entry = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local job = redis.call('HMGET', job_key(id), 'state', 'attempt', 'run')
if job[1] ~= 'running' or job[2] ~= attempt or job[3] ~= run then return -1 end
offer(entry, id)
redis.call('HSET', job_key(id), 'state', 'queued')
redis.call('HINCRBY', job_key(id), 'released', ARGV[10])
return 0
