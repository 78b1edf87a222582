#!lua
-- Every change of a job but request_cancel.lua's mark: checks the version, then changes fields, sets, events and the
-- deadline at once.
-- KEYS  1 job  2 job events  3 jobs  4 state set it is in  5 state set it goes to  6 deadlines  7 wake
--       8 events stream  9 owners  10 waiting room  11 tracked
--       12 the account's other waiting room  13 outbox  14 the kinds of events that the service's own sinks want
--       15 the outbox's wake  16 the jobs in the state it is in that a worker holds  17 counters
-- ARGV  1 JSON: id, expect (version; 0: must not exist), entered (bool), set {field: text}, delete [field],
--       delay_ms (absent: no deadline), room_score (absent: leave both rooms), room_class (the lowest score of its
--       class of calls, and of the next class), track (bool),
--       event (JSON text), own (finetune_id),
--       kind (of the event), notify (a sink of the job wants it), stream_length, count [field of the counters],
--       held (true: a worker holds it from now on; false: it lets go; absent: nobody does, before or after)
-- Returns {1, now_ms}; {0, current version or ""} when the version differs; {-1, job id} when another job owns `own`.
local job, job_events, jobs, state_from, state_to, deadlines, wake, events = unpack(KEYS, 1, 8)
local owners, room, tracked, other_room, outbox, sink_kinds, wake_outbox, running, counters = unpack(KEYS, 9, 17)
local change = cjson.decode(ARGV[1])
local id = change.id
local version = redis.call('HGET', job, 'version')
if (version or '0') ~= change.expect then return {0, version or ''} end
if change.own then
  local owner = redis.call('HGET', owners, change.own)
  if owner and owner ~= id then return {-1, owner} end
  redis.call('HSET', owners, change.own, id)
end

-- A cancel that came while a worker held the job is due as soon as that lets go.
if change.delay_ms and change.held == false and redis.call('HGET', job, 'cancel_requested') == '1'
   and redis.call('HEXISTS', job, 'owner') == 1 then
  change.delay_ms, change.room_score = 0, nil
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

if change.delete[1] then redis.call('HDEL', job, unpack(change.delete)) end
local flat = {'version', change.expect + 1, 'updated_ms', now}
for field, value in pairs(change.set) do table.insert(flat, field); table.insert(flat, value) end
if not version then
  table.insert(flat, 'created_ms'); table.insert(flat, now)
  redis.call('ZADD', jobs, now, id)
end
if change.entered then
  table.insert(flat, 'entered_ms'); table.insert(flat, now)
  redis.call('ZREM', state_from, id)
  redis.call('ZADD', state_to, now, id)
end
redis.call('HSET', job, unpack(flat))

local early = false
if change.delay_ms then
  redis.call('ZADD', deadlines, now + change.delay_ms, id)
  early = redis.call('ZRANGE', deadlines, 0, 0)[1] == id
else
  redis.call('ZREM', deadlines, id)
end
if change.held and change.delay_ms then
  redis.call('ZADD', running, now + change.delay_ms, id)
elseif change.held ~= nil then
  redis.call('ZREM', running, id)
end
redis.call('ZREM', other_room, id)
if change.room_score then
  local low, above = unpack(change.room_class)
  -- The first of its class of calls may get a slot at once: what holds the other classes back may not hold it.
  early = early or redis.call('ZCOUNT', room, low, '(' .. above) == 0
  redis.call('ZADD', room, change.room_score, id)
else
  redis.call('ZREM', room, id)
end
if change.track then
  redis.call('ZADD', tracked, 'NX', now, id)
elseif redis.call('ZREM', tracked, id) == 1 then
  early = early or redis.call('EXISTS', room) == 1 -- room below the cap on trainings
end
if change.event then
  redis.call('RPUSH', job_events, change.event)
  redis.call('XADD', events, 'MAXLEN', '~', change.stream_length, '*', 'event', change.event)
  if change.notify or redis.call('SISMEMBER', sink_kinds, change.kind) == 1 then
    redis.call('ZADD', outbox, now, id)
    if redis.call('EXISTS', wake_outbox) == 0 then redis.call('LPUSH', wake_outbox, '1') end
  end
end
for _, field in ipairs(change.count or {}) do redis.call('HINCRBY', counters, field, 1) end
if early and redis.call('EXISTS', wake) == 0 then redis.call('LPUSH', wake, '1') end
return {1, now}
