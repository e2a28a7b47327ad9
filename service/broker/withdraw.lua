-- ARGV[6]: id of a job that nobody was promised: as if it had never been submitted. A worker that has it is fenced.
local id = ARGV[6]
local job = redis.call('HMGET', job_key(id), 'entry', 'idempotency', 'priority', 'lane', 'tokens')
if not job[1] then return 0 end
drop_entry(job[1])
step_out(job[3], job[4], job[5], job[1], id)
give_back(id)
local key = idempotency_key(job[2])
if job[2] ~= '' and redis.call('HGET', key, 'job') == id then redis.call('DEL', key) end
drop_pictures(id)
redis.call('DEL', job_key(id), events_key(id))
return 1
