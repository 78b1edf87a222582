#!lua
-- Takes what is due: each job returned is put off by the handover time, so that only this caller acts on it.
-- KEYS  1 deadlines
-- ARGV  1 how many at most  2 handover_ms
-- Returns {ms until the next deadline or -1, job id, the deadline that passed, ...}.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local upto = string.format('%d', now)
local due = redis.call('ZRANGE', KEYS[1], '-inf', upto, 'BYSCORE', 'LIMIT', 0, ARGV[1], 'WITHSCORES')
for index = 1, #due, 2 do redis.call('ZADD', KEYS[1], string.format('%d', now + ARGV[2]), due[index]) end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local wait = -1
if first[2] then wait = math.max(0, first[2] - now) end
table.insert(due, 1, wait)
return due
