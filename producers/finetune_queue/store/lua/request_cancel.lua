#!lua
-- Asks the worker that holds a job to cancel it. No change of version: that would fence the worker off from recording
-- what it is doing, which may be a paid submit.
-- KEYS  1 job
-- Returns 1 if a worker holds it and was asked, 0 if nobody does or it has ended, -1 if there is no such job.
local state, owner = unpack(redis.call('HMGET', KEYS[1], 'state', 'owner'))
if not state then return -1 end
-- Whoever holds one that has ended only changes its model's access, which no cancel is to stop.
if not owner or state == 'succeeded' or state == 'failed' or state == 'cancelled' then return 0 end
redis.call('HSET', KEYS[1], 'cancel_requested', '1')
return 1
