-- Returns {waiting, pending, age of the oldest waiting job in ms, dead letters, memory used, memory limit}.
-- Entries leave the stream when their job ends, so its length is waiting + pending.
local total, pending, last = redis.call('XLEN', JOBS), 0, '0-0'
local groups = redis.pcall('XINFO', 'GROUPS', JOBS)
if not groups.err then
  for _, flat in ipairs(groups) do
    local group = {}
    for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
    if group['name'] == GROUP then pending, last = group['pending'], group['last-delivered-id'] end
  end
end
local age_ms = 0
local oldest = redis.call('XRANGE', JOBS, '(' .. last, '+', 'COUNT', 1)
if oldest[1] then
  age_ms = math.max(0, now_ms() - tonumber(string.match(oldest[1][1], '^(%d+)-')))
end
-- pcall: a managed server may keep INFO to itself; then both are 0. The limit is 0 where there is none.
local memory = redis.pcall('INFO', 'memory')
local function bytes(field)
  return type(memory) == 'string' and tonumber(string.match(memory, field .. ':(%d+)')) or 0
end
return {
  math.max(0, total - pending), pending, age_ms, redis.call('XLEN', DEAD),
  bytes('used_memory'), bytes('maxmemory'),
}
