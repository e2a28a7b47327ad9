-- A job that the server lost, or whose newest claim it lost, is put back where its gateway saw it last.
-- ARGV[6..10]: as submit's. ARGV[11..15]: attempt and run of the last event seen (0 and ''), its seq, the
-- attempt to count on from (`ATTEMPTS_APART` in protocol/events.py), how many ARGV hold images; these; then id
-- and JSON of every event seen, from the first on: they keep their ids.
-- Returns 1, or 0 where the server knows as much as we do (or more).
local id, attempt, run, seq = ARGV[6], tonumber(ARGV[11]), ARGV[12], tonumber(ARGV[13])
local base, events_from = tonumber(ARGV[14]), 16 + tonumber(ARGV[15])
local job = redis.call('HMGET', job_key(id), 'state', 'attempt', 'run', 'entry', 'deadline')
if job[1] then
  if job[1] == 'done' or job[1] == 'error' or tonumber(job[2]) > attempt then return 0 end
  if tonumber(job[2]) == attempt and (run == '' or job[3] == run) then return 0 end
  -- Whoever claimed it meanwhile loses it: what he writes would not follow what was delivered.
  offer(job[4], id)
  redis.call('HSET', job_key(id), 'state', 'queued', 'attempt', base, 'run', run, 'seq', seq, 'released', base)
  keep_job(id, job[5])
else
  enqueue(id, ARGV[7], ARGV[8], ARGV[9], ARGV[10], base, seq, 16, events_from - 1)
  redis.call('HSET', job_key(id), 'run', run)
end
redis.call('DEL', events_key(id))
for i = events_from, #ARGV - 1, 2 do redis.call('XADD', events_key(id), ARGV[i], 'e', ARGV[i + 1]) end
redis.call('EXPIRE', events_key(id), redis.call('TTL', job_key(id)))
return 1
