#!lua
-- Takes a job out of a line once its sinks there have every event that they want, or puts it off within the line.
-- KEYS  1 lines  2 line  3 the job's sinks  4 the job's events  5 job  6 the job's deliveries
-- ARGV  1 line  2 the hold  3 job id  4 how many events the job had when it was read
--       5 delay_ms to put it off by, or "" to take it out  6... sink's id, how many events it had when it was read
-- Returns 1, or 0 when the hold was lost.
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '-1') ~= tonumber(ARGV[2]) then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local more = redis.call('LLEN', KEYS[4]) > tonumber(ARGV[4])
if ARGV[5] ~= '' then
  local others = more and #ARGV > 7 -- an event came meanwhile, and a sink that did not fail may take it now
  redis.call('ZADD', KEYS[2], others and now or now + ARGV[5], ARGV[3])
  return 1
end
for index = 6, #ARGV, 2 do
  -- Events that a sink does not want count as delivered to it.
  if (redis.call('HGET', KEYS[3], ARGV[index]) or '0') == ARGV[index + 1] then
    redis.call('HSET', KEYS[3], ARGV[index], ARGV[4])
  else
    more = true -- set back by a redelivery
  end
end
if more then
  redis.call('ZADD', KEYS[2], now, ARGV[3])
  return 1
end
redis.call('ZREM', KEYS[2], ARGV[3])
redis.call('HDEL', KEYS[3], 'line:' .. ARGV[1])
-- Where no job is left, nothing else would remove the events and their sinks.
if redis.call('EXISTS', KEYS[5]) == 0 then
  local busy = false
  for _, field in ipairs(redis.call('HKEYS', KEYS[3])) do busy = busy or string.sub(field, 1, 5) == 'line:' end
  if not busy then redis.call('DEL', KEYS[3], KEYS[4], KEYS[6]) end
end
return 1
