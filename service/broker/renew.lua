-- ARGV[6..]: job id, attempt, entry, for each lease. Returns for each: -1 fenced, 1 cancel requested, 0 renewed.
local answer = {}
for i = 6, #ARGV, 3 do
  local job = redis.call('HMGET', job_key(ARGV[i]), 'state', 'attempt', 'cancel')
  if job[1] ~= 'running' or job[2] ~= ARGV[i + 1] then
    answer[#answer + 1] = -1
  else
    redis.pcall('XCLAIM', JOBS, GROUP, CONSUMER, 0, ARGV[i + 2], 'JUSTID') -- sets idle time to 0
    redis.call('EXPIRE', job_key(ARGV[i]), JOB_TTL)
    answer[#answer + 1] = job[3] == '1' and 1 or 0
  end
end
return answer
