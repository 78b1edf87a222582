#!lua flags=allow-oom
-- Removes a finished job once its retention is over, its sinks have its events and nothing is left to do for it.
-- KEYS  1 job  2 job events  3 jobs  4 its state set  5 owners  6 outbox  7 the job's sinks  8 its deliveries
--       9 deadlines
-- ARGV  1 job id  2 the version it was read at  3... trainings that it may own
-- Returns 1, or 0 when the job changed meanwhile, has a deadline, or a sink still waits for it.
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[2] then return 0 end
if redis.call('ZSCORE', KEYS[6], ARGV[1]) or redis.call('ZSCORE', KEYS[9], ARGV[1]) then return 0 end
for _, field in ipairs(redis.call('HKEYS', KEYS[7])) do
  if string.sub(field, 1, 5) == 'line:' then return 0 end
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[7], KEYS[8])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
for index = 3, #ARGV do
  if redis.call('HGET', KEYS[5], ARGV[index]) == ARGV[1] then redis.call('HDEL', KEYS[5], ARGV[index]) end
end
return 1
