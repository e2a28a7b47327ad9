-- ARGV[6]: the id of a job that was admitted and will not be submitted. One that was keeps its reservation.
if redis.call('EXISTS', job_key(ARGV[6])) == 0 then give_back(ARGV[6]) end
return 0
