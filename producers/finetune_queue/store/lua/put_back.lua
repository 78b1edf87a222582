#!lua flags=allow-oom
-- Puts a message back into the queue that it was taken from, also on a full server: that hands messages out, and would
-- refuse to take one back.
-- KEYS  1 the queue's list of the message's priority
-- ARGV  1 the message  2 "RPUSH": as the next to be taken; "LPUSH": behind all that wait
-- Returns the list's length.
return redis.call(ARGV[2], KEYS[1], ARGV[1])
