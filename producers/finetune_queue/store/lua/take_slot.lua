#!lua
-- Takes a call slot for a call that starts now: the one reserved for this holder, or a free one that nobody better
-- placed waits for. A submit also takes its share of the caps on spending and on trainings in flight.
-- KEYS  1 slots  2 waiting room  3 account  4 tracked  5 the job, for a claimed one
-- ARGV  1 holder (job id or "sweep")  2 token of the call  3 the holder's score in the room
--       4 timeout_ms: by when the call has ended for certain  5 "1" for a submit
--       6 first_sweep_ms: how long after a submit the first look at it may be worth a call
--       7 the version at which the job was claimed, "" for none
--       8 sweep_ms: how long a sweep may take, its call and what comes of it; then it counts as dead
-- Returns {1, now_ms}; {0, a WaitReason or "unknown-account", how many are ahead, "1" if submits are stopped by hand};
-- {-1, current version or ""} when the claim was lost; {-2} when another sweep is under way, or was made meanwhile.
if ARGV[7] ~= '' then
  local version = redis.call('HGET', KEYS[5], 'version')
  if version ~= ARGV[7] then return {-1, version or ''} end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local reserved = redis.call('ZREM', KEYS[1], 'reserved:' .. ARGV[1], 'reserved:submit:' .. ARGV[1]) > 0
local ahead = redis.call('ZCOUNT', KEYS[2], '-inf', '(' .. ARGV[3])

local account = {}
local flat = redis.call('HGETALL', KEYS[3])
for index = 1, #flat, 2 do account[flat[index]] = flat[index + 1] end
local function number(name) return tonumber(account[name] or '0') end
local function cap(name) return tonumber(account[name] or '') or math.huge end
if not account.limit then return {0, 'unknown-account', 0} end

if ARGV[1] == 'sweep' and not reserved and number('sweep_at') > now then return {-2} end
if number('paused_until') > now then return {0, 'paused', ahead} end
local probing = account.probing == '1'
if probing and not reserved and number('probe_until') > now then return {0, 'paused', ahead} end

local submit = ARGV[5] == '1'
local day = math.floor(now / 86400000)
if number('spent_day') == day + 1 then day = day + 1 end -- the clock went back: a day that has begun goes on
local spent = number('spent_day') == day and number('spent') or 0 -- as reserve.lua and Accounts.status count them
if submit then
  if account.stopped == '1' then return {0, 'spending', ahead, '1'} end
  if spent >= cap('max_submits') then return {0, 'spending', ahead} end
  local since = now - cap('training_limit_ms') -- a training tracked for longer counts no more, as in those two
  local others = redis.call('ZCOUNT', KEYS[4], since, '+inf')
  local mine = redis.call('ZSCORE', KEYS[4], ARGV[1])
  if mine and tonumber(mine) >= since then others = others - 1 end
  if others >= cap('max_training') then return {0, 'trainings', ahead} end
  -- The provider refused the account's submits: one at a time tries whether it still does.
  local held = not reserved and number('submits_probe_until') or 0
  if math.max(number('submits_paused_until'), held) > now then return {0, 'paused', ahead} end
end

if not reserved and redis.call('ZCARD', KEYS[1]) + ahead >= number('limit') then return {0, 'api-slot', ahead} end

-- Should the caller die, its slot is free one window after its call must have ended; one part in a thousand more for
-- clocks that run at different speeds.
local window = number('window_ms')
redis.call('ZADD', KEYS[1], now + ARGV[4] + window + math.ceil(window / 1000) + 1, ARGV[2])
if probing then redis.call('HSET', KEYS[3], 'probe_until', now + ARGV[4], 'probed_by', ARGV[1], 'probe', ARGV[2]) end
if ARGV[1] == 'sweep' then
  -- No other while it may run: its end plans the next one.
  redis.call('HSET', KEYS[3], 'sweep_at', math.max(number('sweep_at'), now + ARGV[8]), 'sweeping_until', now + ARGV[8])
end
if submit then
  if account.submits_refused then
    redis.call('HSET', KEYS[3], 'submits_probe_until', now + ARGV[4], 'submits_probe', ARGV[2])
  end
  redis.call('HSET', KEYS[3], 'spent_day', day, 'spent', spent + 1)
  if redis.call('ZCARD', KEYS[4]) == 0 then
    -- Not sooner than the last sweep allows: those of trainings that come one by one keep to their share as well. What
    -- it allows an idle budget holds for this one too; its busy delay alone may be long over for what waits now.
    for _, at in ipairs({'sweep_at', account.sweep_idle_at and 'sweep_idle_at'}) do
      redis.call('HSET', KEYS[3], at, math.max(number(at), now + ARGV[6]))
    end
  end
  redis.call('ZADD', KEYS[4], 'NX', now, ARGV[1])
end
return {1, now}
