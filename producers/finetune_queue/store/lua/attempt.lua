#!lua
-- Writes down one attempt to deliver to a sink: its entry in the log, how far the sink is, and the dead letter if it was
-- given up. The worker must still hold the line, and keeps it for another lease.
-- KEYS  1 lines  2 the job's sinks  3 the job's deliveries  4 dead letters
-- ARGV  1 line  2 the hold  3 lease_ms  4 sink's id  5 how far it was when read  6 how far it is now
--       7 entry of the log  8 how many entries are kept  9 how many dead letters are kept
--       10 "1" if the sink wants no more of the job's events  11... field and value of the dead letter
-- Returns {1, the new hold, failures in a row}; {0} when the hold was lost, and nothing was written; {-1} when the sink
-- was set back by a redelivery, and only the log was written.
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '-1') ~= tonumber(ARGV[2]) then return {0} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('LPUSH', KEYS[3], ARGV[7])
redis.call('LTRIM', KEYS[3], 0, ARGV[8] - 1)
if (redis.call('HGET', KEYS[2], ARGV[4]) or '0') ~= ARGV[5] then return {-1} end
local failures = 0
if ARGV[5] == ARGV[6] then
  failures = redis.call('HINCRBY', KEYS[2], ARGV[4] .. ':failures', 1)
  redis.call('HSETNX', KEYS[2], ARGV[4] .. ':since', now)
else
  redis.call('HDEL', KEYS[2], ARGV[4] .. ':failures', ARGV[4] .. ':since')
  redis.call('HSET', KEYS[2], ARGV[4], ARGV[6], ARGV[4] .. ':at', now)
end
if ARGV[10] == '1' then redis.call('HSET', KEYS[2], ARGV[4] .. ':gone', 1) end
if #ARGV > 10 then redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[9], '*', unpack(ARGV, 11)) end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
return {1, now + ARGV[3], failures}
