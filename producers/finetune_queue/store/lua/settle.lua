#!lua
-- Ends the hold of a line: it is due again with its next job, after a failure not before the delay, or gone if empty.
-- KEYS  1 lines  2 line  3 the line's state  4 wake
-- ARGV  1 line  2 the hold  3 delay_ms, 0 when its sinks are well  4 why they are not; none if they were not tried
-- Returns how often in a row they were not; -1 when the hold was lost.
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '-1') ~= tonumber(ARGV[2]) then return -1 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local failures = 0
if ARGV[3] == '0' then
  redis.call('DEL', KEYS[3])
elseif ARGV[4] then
  failures = redis.call('HINCRBY', KEYS[3], 'failures', 1)
  redis.call('HSETNX', KEYS[3], 'since', now)
  redis.call('HSET', KEYS[3], 'reason', ARGV[4])
end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if not first[2] then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('DEL', KEYS[3])
  return 0
end
local due = math.max(tonumber(first[2]), now + ARGV[3])
redis.call('ZADD', KEYS[1], due, ARGV[1])
if ARGV[3] == '0' then redis.call('HSET', KEYS[3], 'idle', due) end -- a job that comes now need not wait so long
if redis.call('EXISTS', KEYS[4]) == 0 then redis.call('LPUSH', KEYS[4], '1') end
return failures
