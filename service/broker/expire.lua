-- ARGV[6]: job id. Ends a waiting job whose deadline has passed; a running one is its worker's to end.
-- Returns the ms until there may be something to end, 0 where there is nothing more; -1: it ended here.
local id, now = ARGV[6], now_ms()
local job = redis.call('HMGET', job_key(id), 'state', 'deadline')
if job[1] ~= 'queued' or job[2] == '' then return 0 end
if tonumber(job[2]) > now then return tonumber(job[2]) - now end
return -expire_one(id, now)
