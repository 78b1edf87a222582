#!lua
-- When an account is swept next. A hint may bring the next sweep forward, but all sweeps together keep to the share of
-- calls that looking may use: each moves `sweep_due` on by the time that it costs (GCRA, ITU-T I.371).
-- KEYS  1 account  2 tracked  3 wake
-- ARGV  1 "swept": a sweep has ended; "hint"; "now": for once without regard to the share. Of "swept" also:
--       2 next_ms: when the next look is worth it  3 cost_ms: one sweep's time within the share
--       4 gap_ms: the least between two sweeps  5 "1" if the sweep saw what Segmind has
--       6 idle_ms: when the next look is worth it once nobody waits for a call
-- Returns ms until the next sweep; -1 for a hint to an account without trainings, which changes nothing.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function number(name) return tonumber(redis.call('HGET', KEYS[1], name) or '0') end
local function set(...) redis.call('HSET', KEYS[1], ...) end
local function wake() if redis.call('EXISTS', KEYS[3]) == 0 then redis.call('LPUSH', KEYS[3], '1') end end

if ARGV[1] == 'swept' then
  local due = math.min(math.max(now, number('sweep_due')), now + ARGV[3]) + ARGV[3]
  redis.call('HDEL', KEYS[1], 'sweeping_until')
  set('sweep_at', now + ARGV[2], 'sweep_idle_at', now + ARGV[6])
  set('sweep_due', due, 'sweep_cost_ms', ARGV[3], 'sweep_gap_ms', ARGV[4])
  if ARGV[5] == '1' then set('looked_at', now) end
  wake() -- the dispatchers knew only when the sweep itself would count as lost
elseif ARGV[1] == 'now' then
  set('sweep_due', now, 'sweep_at', math.max(now, number('sweeping_until')), 'sweep_hinted', '1')
  wake()
elseif redis.call('ZCARD', KEYS[2]) == 0 then
  return -1
else
  set('sweep_hinted', '1')
end

local at = number('sweep_at')
if redis.call('HEXISTS', KEYS[1], 'sweep_hinted') == 1 then
  -- Not while the last one runs or just after it, and one sweep ahead of the share at most.
  local early = math.max(now, number('sweeping_until'), number('swept_at') + number('sweep_gap_ms'),
                         number('sweep_due') - number('sweep_cost_ms'))
  if early < at then
    at = early
    set('sweep_at', at)
    wake()
  end
end
return math.max(0, at - now)
