#!lua
-- Ends the hold of a line: the line is due again with its next job, but not before the delay; an empty one is removed.
-- KEYS  1 lines  2 line  3 the line's state  4 wake  5 the line's sinks that are put off  6 the origins that were reached
-- ARGV  1 line  2 the hold  3 delay_ms, 0 for none
--       4 "well": forget earlier failures; "down": its sinks did not answer; "same": nothing was learnt of them;
--       "back": as "same", and no notifier is woken, as the line was not worked on
--       5 why they are down, or ""  6 the line's origin if one of its sinks answered meanwhile, or ""
--       7... id of a sink that is put off, what is known of it
-- Returns 1; 0 when the hold was lost, and nothing was done.
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '-1') ~= tonumber(ARGV[2]) then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local rest = now + ARGV[3]
if ARGV[6] ~= '' then
  redis.call('ZADD', KEYS[6], now, ARGV[6])
  redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', now - 30 * 86400000)
end
if ARGV[4] == 'well' or ARGV[6] ~= '' then redis.call('DEL', KEYS[3]) end
if ARGV[4] == 'down' then
  redis.call('HINCRBY', KEYS[3], 'failures', 1)
  redis.call('HSETNX', KEYS[3], 'since', now)
  redis.call('HSET', KEYS[3], 'reason', ARGV[5], 'rest', rest)
end
redis.call('DEL', KEYS[5])
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if not first[2] then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('DEL', KEYS[3])
  return 1
end
if #ARGV > 6 then
  redis.call('HSET', KEYS[5], unpack(ARGV, 7))
  redis.call('PEXPIRE', KEYS[5], 86400000) -- a worker of an older version empties a line without it
end
local due = math.max(tonumber(first[2]), rest)
redis.call('ZADD', KEYS[1], due, ARGV[1])
if tonumber(first[2]) >= rest then redis.call('HSET', KEYS[3], 'idle', due) end -- a job that comes now need not wait so long
if ARGV[4] ~= 'back' and redis.call('EXISTS', KEYS[4]) == 0 then redis.call('LPUSH', KEYS[4], '1') end
return 1
