#!lua
-- Keeps a slot for longer than was asked for at its start: its transfer still makes progress. The slot is free again as
-- take_slot.lua says, counted from now.
-- KEYS  1 slots  2 account
-- ARGV  1 token of the call  2 timeout_ms: by when it has ended for certain, from now
-- Returns 1, or 0 when the token has no slot any more.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local window = tonumber(redis.call('HGET', KEYS[2], 'window_ms') or '0')
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], 'XX', now + ARGV[2] + window + math.ceil(window / 1000) + 1, ARGV[1])
return 1
