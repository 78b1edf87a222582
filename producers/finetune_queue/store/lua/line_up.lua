#!lua
-- Moves a job from the outbox into the lines of its sinks. The events are read when the job's turn comes in a line, so
-- those that are written until then go out with it.
-- KEYS  1 outbox  2 lines  3 the job's sinks  4 job  5 the job's events  6... each line, its state
-- ARGV  1 job id  2... the name of each line, how many of the job's sinks are in it
-- Returns nothing.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for index = 2, #ARGV, 2 do
  local line, state, name = KEYS[index + 4], KEYS[index + 5], ARGV[index]
  if redis.call('ZADD', line, 'NX', now, ARGV[1]) == 1 then
    redis.call('HSETNX', KEYS[3], 'line:' .. name, now)
  elseif ARGV[index + 1] ~= '1' then
    redis.call('ZADD', line, 'XX', 'LT', now, ARGV[1]) -- it was put off for one sink, and has news for the others
  end
  -- A line that only waits for jobs which were put off has something to do now; one that is held, or down, waits.
  local due = redis.call('ZSCORE', KEYS[2], name)
  if not due or due == redis.call('HGET', state, 'idle') then
    redis.call('ZADD', KEYS[2], math.max(now, tonumber(redis.call('HGET', state, 'rest') or '0')), name)
  end
end
redis.call('ZREM', KEYS[1], ARGV[1])
-- Where no job is left, nothing else would remove the events and their sinks.
if #ARGV == 1 and redis.call('EXISTS', KEYS[4]) == 0 then redis.call('DEL', KEYS[3], KEYS[5]) end
