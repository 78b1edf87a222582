-- Moves the deadlines of jobs that were just seen to be well; a job that has none (it ended) gets none.
-- KEYS  1 deadlines
-- ARGV  pairs: delay_ms, job id
-- Returns how many had one.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local count = 0
for index = 1, #ARGV, 2 do
  count = count + redis.call('ZADD', KEYS[1], 'XX', 'CH', string.format('%d', now + ARGV[index]), ARGV[index + 1])
end
return count
