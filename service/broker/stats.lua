-- Returns {waiting, pending, age of the oldest waiting job in ms, dead letters, memory used, memory limit,
-- reserved tokens, waiting tokens}.
-- Entries leave the stream when their job ends, so its length is waiting + pending.
local total, pending = redis.call('XLEN', JOBS), 0
local groups = redis.pcall('XINFO', 'GROUPS', JOBS)
if not groups.err then
  for _, flat in ipairs(groups) do
    local group = {}
    for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
    if group['name'] == GROUP then pending = group['pending'] end
  end
end
local now, age_ms = now_ms(), 0
for _, class in ipairs({INTERACTIVE, BATCH}) do
  for _, owner in ipairs(redis.call('ZRANGE', fair_key(class), 0, -1)) do
    local head = redis.call('LINDEX', wait_key(class, owner), 0) or ''
    local queued_ms = tonumber(string.match(head, '^%d+ (%d+)-'))
    if queued_ms then age_ms = math.max(age_ms, now - queued_ms) end
  end
end
-- pcall: a managed server may keep INFO to itself; then both are 0. The limit is 0 where there is none.
local memory = redis.pcall('INFO', 'memory')
local function bytes(field)
  return type(memory) == 'string' and tonumber(string.match(memory, field .. ':(%d+)')) or 0
end
return {
  math.max(0, total - pending), pending, age_ms, redis.call('XLEN', DEAD),
  bytes('used_memory'), bytes('maxmemory'), load_of(ALL), load_of(WAITING),
}
