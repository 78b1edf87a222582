#!lua
-- Tells whether the sweep that was handed out last was not made: its slot is still reserved, or it is due again.
-- KEYS  1 slots  2 account
-- Returns 1 or 0.
if redis.call('ZSCORE', KEYS[1], 'reserved:sweep') then return 1 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return tonumber(redis.call('HGET', KEYS[2], 'sweep_at') or '0') <= now and 1 or 0
