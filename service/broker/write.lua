-- ARGV[6..9]: job id, attempt, state it ends in ('' if it goes on), seq of the first event; then the events.
-- Returns -1 fenced, 1 cancel requested, 0 otherwise. Repeating a call changes nothing: known seqs are skipped.
local id, attempt, final, first = ARGV[6], ARGV[7], ARGV[8], tonumber(ARGV[9])
local last = first + #ARGV - 10
local job = redis.call('HMGET', job_key(id), 'state', 'attempt', 'seq', 'cancel', 'entry', 'ended_by')
if job[1] ~= 'running' or job[2] ~= attempt then
  local repeated = final ~= '' and job[6] == attempt and tonumber(job[3]) == last
  return repeated and 0 or -1
end
local have = tonumber(job[3])
if first > have + 1 then return redis.error_reply('GAP job ' .. id .. ' has seq ' .. have .. ', got ' .. first) end
for seq = have + 1, last do append(id, attempt, seq, ARGV[10 + seq - first]) end
if last > have then redis.call('HSET', job_key(id), 'seq', last) end
if final ~= '' then
  end_job(id, job[5], final, ARGV[#ARGV], attempt)
else
  redis.call('EXPIRE', events_key(id), JOB_TTL)
end
return job[4] == '1' and 1 or 0
