-- ARGV[6]: a random name; then job ids. Returns {name of this data, for each job {state, attempt, run, seq} or {}}.
-- The data's name is the first one offered to an empty server: another name means that everything was lost.
local key = PREFIX .. 'generation'
if redis.call('EXISTS', key) == 0 then redis.pcall('SET', key, ARGV[6]) end -- a full server does not take it
local answer = {redis.call('GET', key) or ''}
for i = 7, #ARGV do
  local job = redis.call('HMGET', job_key(ARGV[i]), 'state', 'attempt', 'run', 'seq')
  answer[#answer + 1] = job[1] and {job[1], tonumber(job[2]), job[3] or '', tonumber(job[4])} or {}
end
return answer
