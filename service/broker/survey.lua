-- ARGV[6]: a new random name; then job ids. Returns {data_name, for each job {state, attempt, run, seq} or {}}.
local answer = {data_name(ARGV[6])}
for i = 7, #ARGV do
  local job = redis.call('HMGET', job_key(ARGV[i]), 'state', 'attempt', 'run', 'seq')
  answer[#answer + 1] = job[1] and {job[1], tonumber(job[2]), job[3] or '', tonumber(job[4])} or {}
end
return answer
