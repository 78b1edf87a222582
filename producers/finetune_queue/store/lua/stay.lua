#!lua
-- Puts off the deadlines of jobs that still have a place in a waiting room: that is where a slot comes to them.
-- KEYS  1 deadlines  2... for each job: the room for calls, the room for transfers
-- ARGV  for each job: its id, delay_ms
-- Returns the ids of those that have a place.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local staying = {}
for index = 1, #ARGV, 2 do
  local id = ARGV[index]
  if redis.call('ZSCORE', KEYS[index + 1], id) or redis.call('ZSCORE', KEYS[index + 2], id) then
    redis.call('ZADD', KEYS[1], 'XX', now + ARGV[index + 1], id)
    table.insert(staying, id)
  end
end
return staying
