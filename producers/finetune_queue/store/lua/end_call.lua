#!lua
-- Ends a call: its slot is free one window from now; that of a call which was given up and may still reach the provider
-- stays taken as if its caller had died. An outcome that shows the provider well lifts a probe, but not during a pause:
-- it is that of a call from before. One that shows it unwell pauses the account, and what was reserved lapses: after the
-- pause one call goes first. One that was not sent shows nothing: if it was the probe, another goes. A submit that the
-- provider refuses its account does the same to the account's submits alone, until one goes well: one tries at a time.
-- KEYS  1 slots  2 waiting room  3 account  4 wake
-- ARGV  1 token of the call  2 "well" | "unwell" | "unsent" | "refused"  3 pause_ms asked for by the provider, or ""
--       4 backoff_base_ms  5 backoff_max_ms  6 jitter, 0 to 1  7 why, for people
--       8 when the submit took its slot (ms), to take it off that day's count, or ""
--       9 why, for programs  10 "1" if it may still reach the provider  11 "1" for a submit
-- Returns in how many ms the pause ends, 0 for none. It may be one from before that lasts longer.
local slots, room, account, wake = unpack(KEYS)
local token, health, asked_ms, backoff_base_ms, backoff_max_ms, jitter, why = unpack(ARGV, 1, 7)
local refund_at, code, under_way = unpack(ARGV, 8, 10)
local submit = ARGV[11] == '1'

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function number(name) return tonumber(redis.call('HGET', account, name) or '0') end

local window = number('window_ms')
if under_way ~= '1' then redis.call('ZADD', slots, 'XX', now + window + math.ceil(window / 1000) + 1, token) end
if refund_at ~= '' and redis.call('HGET', account, 'spent_day') == tostring(math.floor(refund_at / 86400000)) then
  redis.call('HINCRBY', account, 'spent', -1)
end

local function lift()
  if submit and health == 'well' and number('submits_paused_until') <= now then
    redis.call('HDEL', account, 'submits_paused_until', 'submits_probe_until', 'submits_probe', 'submits_refused')
  end
  if number('paused_until') > now then return end
  redis.call('HDEL', account, 'probing', 'probe_until', 'probed_by', 'probe', 'failures')
  if redis.call('HEXISTS', account, 'submits_refused') == 0 then
    redis.call('HDEL', account, 'pause_reason', 'pause_code')
  end
end

local function pause_by(prefix, counter)
  local already = number(prefix .. 'paused_until')
  if already > now and asked_ms == '' then return already - now end
  -- Calls under way together count as one failure.
  local failures = already > now and number(counter) or redis.call('HINCRBY', account, counter, 1)
  local pause = tonumber(asked_ms ~= '' and asked_ms or math.min(backoff_max_ms, backoff_base_ms * 2 ^ (failures - 1)))
  local ends = math.max(already, now + math.ceil(pause * (1 + 0.25 * jitter)))
  redis.call('HSET', account, prefix .. 'paused_until', ends, prefix .. 'probe_until', '0',
             'pause_reason', why, 'pause_code', code)
  local lapsed = 'reserved:' .. (prefix == 'submits_' and 'submit:' or '')
  for _, member in ipairs(redis.call('ZRANGE', slots, 0, -1)) do
    if string.sub(member, 1, #lapsed) == lapsed then redis.call('ZREM', slots, member) end
  end
  return ends - now
end

local pause = 0
if health == 'well' then
  lift()
elseif health == 'refused' then
  lift()
  pause = pause_by('submits_', 'submits_refused')
else
  if redis.call('HGET', account, 'submits_probe') == token then
    redis.call('HSET', account, 'submits_probe_until', '0')
  end
  if health == 'unwell' then
    pause = pause_by('', 'failures')
    redis.call('HSET', account, 'probing', '1')
  elseif redis.call('HGET', account, 'probe') == token then
    redis.call('HSET', account, 'probe_until', '0')
  end
end
if redis.call('EXISTS', room) == 1 and redis.call('EXISTS', wake) == 0 then redis.call('LPUSH', wake, '1') end
return pause
