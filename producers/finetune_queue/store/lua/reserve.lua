#!lua
-- Hands the account's free slots to its sweep, if due, and to the first of its waiting room. Each slot stays reserved
-- until the holder takes it, or for reserve_ms; a job's deadline brings it back should the message be lost.
-- KEYS  1 slots  2 waiting room  3 account  4 tracked  5 deadlines
-- ARGV  1 how many at most  2 reserve_ms  3 first score of the submits  4 first score after them
--       5 last score that gets any: "+inf" or "(" and a score
-- Returns {ms until there may be more to do or -1, holder, ...}; the holder "sweep" is the account's sweep.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local account = {}
local flat = redis.call('HGETALL', KEYS[3])
for index = 1, #flat, 2 do account[flat[index]] = flat[index + 1] end
local function number(name) return tonumber(account[name] or '0') end
local function cap(name) return tonumber(account[name] or '') or math.huge end

if number('paused_until') > now then return {number('paused_until') - now} end
local free = math.min(tonumber(ARGV[1]), number('limit') - redis.call('ZCARD', KEYS[1]))
if account.probing == '1' then
  if number('probe_until') > now then return {number('probe_until') - now} end
  free = math.min(free, 1)
end

local tracked = redis.call('ZCARD', KEYS[4])
-- Both caps count as in take_slot.lua.
local in_flight = redis.call('ZCOUNT', KEYS[4], now - cap('training_limit_ms'), '+inf')
local days_ago = math.floor(now / 86400000) - number('spent_day')
local spent = (days_ago == 0 or days_ago == -1) and number('spent') or 0
local left = math.min(cap('max_training') - in_flight, cap('max_submits') - spent)
if account.stopped == '1' then left = 0 end
local submits = left
if left < math.huge then
  -- Submits that were handed a slot and have not come for it yet take their part of the caps already.
  for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if string.sub(member, 1, 16) == 'reserved:submit:' then submits = submits - 1 end
  end
end
local submits_in = left > 0 and submits <= 0 and tonumber(ARGV[2]) or math.huge -- should one of them not come
if account.submits_refused then
  local held = math.max(number('submits_paused_until'), number('submits_probe_until')) - now
  if held > 0 then submits_in = left > 0 and held or math.huge; submits = 0 else submits = math.min(submits, 1) end
end

local reply = {-1}
local function reserve(holder, kind)
  redis.call('ZADD', KEYS[1], now + ARGV[2], 'reserved:' .. kind .. holder)
  if account.probing == '1' then
    redis.call('HSET', KEYS[3], 'probe_until', now + ARGV[2], 'probed_by', holder)
    redis.call('HDEL', KEYS[3], 'probe') -- an earlier one that ends late says nothing of this one
  end
  table.insert(reply, holder)
  free = free - 1
end

local sweep_in = math.huge
local function sweep()
  reserve('sweep', '')
  redis.call('HSET', KEYS[3], 'sweep_at', now + ARGV[2], 'swept_at', now)
  redis.call('HDEL', KEYS[3], 'sweep_hinted', 'sweep_idle_at')
  sweep_in, account.sweep_idle_at = tonumber(ARGV[2]), nil
end
-- A look that tried for all others whether the provider is well, and failed, lets a job try: the list alone may be ill.
local jobs_first = account.probing == '1' and account.probed_by == 'sweep'
if tracked > 0 then
  sweep_in = number('sweep_at') - now
  if sweep_in <= 0 and free > 0 and not jobs_first then sweep() end
end

local function pop(low, high, count, kind)
  if count <= 0 or free <= 0 then return 0 end
  local popped = 0
  for _, id in ipairs(redis.call('ZRANGE', KEYS[2], low, high, 'BYSCORE', 'LIMIT', 0, math.min(count, free))) do
    redis.call('ZREM', KEYS[2], id)
    redis.call('ZADD', KEYS[5], now + ARGV[2], id)
    reserve(id, kind)
    popped = popped + 1
  end
  return popped
end
pop('-inf', '(' .. ARGV[3], math.huge, '')
local handed = pop(ARGV[3], '(' .. ARGV[4], submits, 'submit:')
submits = submits - handed
if handed > 0 and account.submits_refused then
  redis.call('HSET', KEYS[3], 'submits_probe_until', now + ARGV[2])
  redis.call('HDEL', KEYS[3], 'submits_probe')
end
if handed > 0 and submits <= 0 then submits_in = tonumber(ARGV[2]) end
pop(ARGV[4], ARGV[5], math.huge, '')
if tracked > 0 and sweep_in <= 0 and free > 0 then sweep() end

local startable = redis.call('ZCOUNT', KEYS[2], '-inf', '(' .. ARGV[3]) + redis.call('ZCOUNT', KEYS[2], ARGV[4], ARGV[5])
if submits > 0 then startable = redis.call('ZCOUNT', KEYS[2], '-inf', ARGV[5]) end

-- A look that was put off while others waited for calls: it comes when none does any more and half of the slots are free.
if tracked > 0 and startable == 0 and account.sweep_idle_at then
  local excess = redis.call('ZCARD', KEYS[1]) - math.floor(number('limit') / 2)
  local half_free = excess > 0 and redis.call('ZRANGE', KEYS[1], excess - 1, excess - 1, 'WITHSCORES')[2] or '0'
  local idle_in = math.max(number('sweep_idle_at'), tonumber(half_free)) - now
  if idle_in <= 0 and free > 0 then sweep() else sweep_in = math.min(sweep_in, idle_in) end
end

local wait = sweep_in > 0 and sweep_in or math.huge
if submits_in < math.huge and redis.call('ZCOUNT', KEYS[2], ARGV[3], '(' .. ARGV[4]) > 0 then
  wait = math.min(wait, submits_in)
end
if startable > 0 or sweep_in <= 0 then
  local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  if first[2] then wait = math.min(wait, first[2] - now) end
end
if wait < math.huge then reply[1] = math.max(1, wait) end
return reply
