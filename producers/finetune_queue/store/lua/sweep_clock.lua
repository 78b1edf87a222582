-- When an account is swept next. A hint brings the next sweep forward and adds none: `sweep_due` counts every sweep as
-- one interval, so after one that came early the following one is due that much later (GCRA, ITU-T I.371).
-- KEYS  1 account  2 tracked  3 wake
-- ARGV  1 "swept" | "hint"  2 interval_ms: from one sweep to the next  3 gap_ms: the least between two (both: swept)
-- Returns ms until the next sweep, -1 when there is nothing to look at.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function number(name) return tonumber(redis.call('HGET', KEYS[1], name) or '0') end
local function set(...) redis.call('HSET', KEYS[1], ...) end

if ARGV[1] == 'swept' then
  local due = math.min(math.max(now, number('sweep_due')), now + ARGV[2]) + ARGV[2]
  set('sweep_due', due, 'sweep_at', due, 'sweep_interval_ms', ARGV[2], 'sweep_gap_ms', ARGV[3])
elseif redis.call('ZCARD', KEYS[2]) == 0 then
  return -1
else
  set('sweep_hinted', '1')
end

local at = number('sweep_at')
if redis.call('HEXISTS', KEYS[1], 'sweep_hinted') == 1 then
  -- Not before the last one is well over, nor more than one interval early.
  local early = math.max(now, number('swept_at') + number('sweep_gap_ms'),
                         number('sweep_due') - number('sweep_interval_ms'))
  if early < at then
    at = early
    set('sweep_at', at)
    if redis.call('EXISTS', KEYS[3]) == 0 then redis.call('LPUSH', KEYS[3], '1') end
  end
end
return math.max(0, at - now)
