-- ARGV[6..8]: worker id, heartbeat, ttl in ms. A script because a full server must not lose sight of its workers.
local key = PREFIX .. 'worker:' .. ARGV[6]
redis.call('PEXPIRE', key, ARGV[8]) -- first: a full server takes the rest after a write that needs no memory
redis.call('SET', key, ARGV[7], 'PX', ARGV[8])
redis.call('SADD', PREFIX .. 'workers', ARGV[6])
return 1
