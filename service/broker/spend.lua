-- ARGV[6..7]: owner, requests a minute. A token bucket that holds a minute's requests and fills evenly.
-- Returns {1 if there was one to spend, how many are left, ms until it is full, ms until there is one}.
local key, capacity = PREFIX .. 'rate:' .. ARGV[6], tonumber(ARGV[7])
local now, a_token_ms = now_ms(), 60000 / tonumber(ARGV[7])
local bucket = redis.call('HMGET', key, 'tokens', 'at')
local tokens = tonumber(bucket[1] or capacity)
local waited_ms = math.max(0, now - tonumber(bucket[2] or now))
tokens = math.min(capacity, tokens + waited_ms / a_token_ms)
local allowed = tokens >= 1 and 1 or 0
tokens = tokens - allowed
redis.call('HSET', key, 'tokens', tostring(tokens), 'at', now)
redis.call('PEXPIRE', key, 60000) -- by then it is full
local full_ms = math.ceil((capacity - tokens) * a_token_ms)
return {allowed, math.floor(tokens), full_ms, math.ceil(math.max(0, 1 - tokens) * a_token_ms)}
