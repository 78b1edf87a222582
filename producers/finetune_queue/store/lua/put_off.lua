#!lua
-- Moves the deadlines of jobs that were just seen to be well. One that changed since it was read keeps its own.
-- KEYS  1 deadlines  2... the jobs
-- ARGV  for each job: delay_ms, job id, the version it was read at
-- Returns how many were moved.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local count = 0
for index = 2, #KEYS do
  local delay, id, version = unpack(ARGV, 3 * index - 5, 3 * index - 3)
  if redis.call('HGET', KEYS[index], 'version') == version then
    count = count + redis.call('ZADD', KEYS[1], 'XX', 'CH', now + delay, id)
  end
end
return count
