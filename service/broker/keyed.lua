-- ARGV[6..7]: a new random name, an idempotency key. Returns {data_name, the key's job, fingerprint}; of a free
-- key the first alone.
local held = redis.call('HMGET', idempotency_key(ARGV[7]), 'job', 'fingerprint')
if not held[1] then return {data_name(ARGV[6])} end
return {data_name(ARGV[6]), held[1], held[2]}
