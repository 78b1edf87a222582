#!lua
-- Asks the worker that holds a job to cancel it. No change of version: that would fence the worker off from recording
-- what it is doing, which may be a paid submit.
-- KEYS  1 job
-- Returns 1 if a worker holds it and was asked, 0 if nobody does, -1 if there is no such job.
local owner = redis.call('HGET', KEYS[1], 'owner')
if not owner then return -1 end
if owner == '' then return 0 end
redis.call('HSET', KEYS[1], 'cancel_requested', '1')
return 1
