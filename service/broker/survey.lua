-- ARGV[6..]: job ids. Returns for each {state, attempt, run, seq}, or {} where it is unknown.
local answer = {}
for i = 6, #ARGV do
  local job = redis.call('HMGET', job_key(ARGV[i]), 'state', 'attempt', 'run', 'seq')
  answer[#answer + 1] = job[1] and {job[1], tonumber(job[2]), job[3] or '', tonumber(job[4])} or {}
end
return answer
