-- ARGV[6..10]: job id, attempt, run, state it ends in ('' if it goes on), seq of the first event; then the events.
-- Returns {-1} fenced, {-2, seq} where the server has fewer events than the writer takes for granted (it lost
-- some), {1} cancel requested, {0} otherwise. Repeating a call changes nothing: known seqs are skipped.
local id, attempt, run, final, first = ARGV[6], ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10])
local last = first + #ARGV - 11
local job = redis.call('HMGET', job_key(id), 'state', 'attempt', 'seq', 'cancel', 'entry', 'ended_by', 'run', 'deadline')
if job[1] ~= 'running' or job[2] ~= attempt or job[7] ~= run then
  local repeated = final ~= '' and job[6] == run and tonumber(job[3]) == last
  return {repeated and 0 or -1}
end
local have = tonumber(job[3])
if first > have + 1 then return {-2, have} end
keep_job(id, job[8]) -- first: a full server takes the rest after a write that needs no memory
redis.call('HDEL', job_key(id), 'unheard') -- who writes has the claim
for seq = have + 1, last do append(id, attempt, seq, ARGV[11 + seq - first]) end
if last > have then redis.call('HSET', job_key(id), 'seq', last) end
if final ~= '' then
  end_job(id, job[5], final, ARGV[#ARGV], run)
else
  redis.call('EXPIRE', events_key(id), math.max(JOB_TTL, redis.call('TTL', job_key(id))))
end
return {job[4] == '1' and 1 or 0}
