#!lua
-- Puts jobs off within a line without an attempt: their sinks there are put off.
-- KEYS  1 lines  2 line
-- ARGV  1 line  2 the hold  3... until when (ms), job id
-- Returns 1, or 0 when the hold was lost.
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '-1') ~= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[2], 'XX', unpack(ARGV, 3))
return 1
