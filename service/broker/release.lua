-- ARGV[6..9]: job id, attempt, entry, what to take off the failed deliveries (1 or 0).
-- The entry stays pending but looks idle for days, so the next claim takes it.
local id, attempt, entry = ARGV[6], ARGV[7], ARGV[8]
local job = redis.call('HMGET', job_key(id), 'state', 'attempt')
if job[1] ~= 'running' or job[2] ~= attempt then return -1 end
redis.call('HSET', job_key(id), 'state', 'queued')
redis.call('HINCRBY', job_key(id), 'released', ARGV[9])
redis.pcall('XCLAIM', JOBS, GROUP, CONSUMER, 0, entry, 'IDLE', 1000000000, 'JUSTID')
wake()
return 0
