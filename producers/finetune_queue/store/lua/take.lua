#!lua
-- Takes due members of a sorted set: each is put off by the lease, so that only this caller acts on it. Their new score
-- is the proof of that: who takes one after the lease leaves another.
-- KEYS  1 set
-- ARGV  1 how many at most  2 lease_ms
-- Returns {ms until the next is due or -1, the new score, member, the score that passed, ...}.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local taken = redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[1], 'WITHSCORES')
for index = 1, #taken, 2 do redis.call('ZADD', KEYS[1], now + ARGV[2], taken[index]) end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local wait = -1
if first[2] then wait = math.max(0, first[2] - now) end
table.insert(taken, 1, now + ARGV[2])
table.insert(taken, 1, wait)
return taken
