-- ARGV[6..11]: job id, predicted tokens, owner, limit in all, the owner's own limit (0 for none), hold ms.
-- Reserves room for a job that is being prepared; it must be submitted or given back before the hold ends.
-- Returns which limit stands in the way and what is reserved under it: {1, in all}, {2, the owner's}, {0, 0} where
-- none does; and then how many waiting jobs were found expired and ended.
local id, tokens, owner = ARGV[6], tonumber(ARGV[7]), ARGV[8]
local limit, owner_limit, hold_ms = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local now = now_ms()
local expired = sweep(now)
local all, own = load_of(ALL), load_of(owned_by(owner))
if all + tokens > limit then return {1, all, expired} end
if owner_limit > 0 and own + tokens > owner_limit then return {2, own, expired} end
reserve(id, ARGV[7], owner)
redis.call('ZADD', DUE, now + hold_ms, id)
return {0, 0, expired}
