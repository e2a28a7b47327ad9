-- ARGV[6..]: job id, attempt, run, entry, for each lease. Returns for each: -1 fenced, 1 cancel requested, 0 renewed.
local answer = {}
for i = 6, #ARGV, 4 do
  local job = redis.call('HMGET', job_key(ARGV[i]), 'state', 'attempt', 'run', 'cancel', 'deadline')
  if job[1] ~= 'running' or job[2] ~= ARGV[i + 1] or job[3] ~= ARGV[i + 2] then
    answer[#answer + 1] = -1
  else
    redis.pcall('XCLAIM', JOBS, GROUP, CONSUMER, 0, ARGV[i + 3], 'JUSTID') -- sets idle time to 0
    keep_job(ARGV[i], job[5])
    redis.call('HDEL', job_key(ARGV[i]), 'unheard') -- who renews has the claim: from now on its failure counts
    answer[#answer + 1] = job[4] == '1' and 1 or 0
  end
end
return answer
