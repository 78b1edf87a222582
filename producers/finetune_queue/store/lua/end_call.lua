#!lua
-- Ends a call: its slot is free one window from now; that of a call which was given up and may still reach the provider
-- stays taken as if its caller had died. An outcome that shows the provider well lifts a probe, but not during a pause:
-- it is that of a call from before. One that shows it unwell pauses the account, and what was reserved lapses: after the
-- pause one call goes first. One that was not sent shows nothing: if it was the probe, another goes.
-- KEYS  1 slots  2 waiting room  3 account  4 wake
-- ARGV  1 token of the call  2 "well" | "unwell" | "unsent"  3 pause_ms asked for by the provider, or ""
--       4 backoff_base_ms  5 backoff_max_ms  6 jitter, 0 to 1  7 why, for people
--       8 when the submit took its slot (ms), to take it off that day's count, or ""
--       9 why, for programs  10 "1" if it may still reach the provider
-- Returns the pause in ms, 0 for none.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local window = tonumber(redis.call('HGET', KEYS[3], 'window_ms') or '0')
if ARGV[10] ~= '1' then redis.call('ZADD', KEYS[1], 'XX', now + window + math.ceil(window / 1000) + 1, ARGV[1]) end
if ARGV[8] ~= '' and redis.call('HGET', KEYS[3], 'spent_day') == tostring(math.floor(ARGV[8] / 86400000)) then
  redis.call('HINCRBY', KEYS[3], 'spent', -1)
end

local pause = 0
local already = tonumber(redis.call('HGET', KEYS[3], 'paused_until') or '0')
if ARGV[2] == 'well' then
  if already <= now then
    redis.call('HDEL', KEYS[3], 'probing', 'probe_until', 'failures', 'pause_reason', 'pause_code')
  end
elseif ARGV[2] == 'unsent' then
  if redis.call('HEXISTS', KEYS[3], 'probing') == 1 then redis.call('HSET', KEYS[3], 'probe_until', '0') end
else
  if already > now and ARGV[3] == '' then
    pause = already - now -- calls that were under way together count as one failure
  else
    local failures = redis.call('HINCRBY', KEYS[3], 'failures', 1)
    pause = tonumber(ARGV[3] ~= '' and ARGV[3] or math.min(ARGV[5], ARGV[4] * 2 ^ (failures - 1)))
    pause = math.ceil(pause * (1 + 0.25 * ARGV[6]))
    redis.call('HSET', KEYS[3], 'paused_until', math.max(already, now + pause), 'pause_reason', ARGV[7], 'pause_code', ARGV[9],
               'probing', '1', 'probe_until', '0')
    for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
      if string.sub(member, 1, 9) == 'reserved:' then redis.call('ZREM', KEYS[1], member) end
    end
  end
end
if redis.call('EXISTS', KEYS[2]) == 1 and redis.call('EXISTS', KEYS[4]) == 0 then redis.call('LPUSH', KEYS[4], '1') end
return pause
