"""Every Redis key, as a function. All share one hash tag, so that a script may touch several of them.

Nothing else in the project spells a key.
"""

TAG = "{finetune}"

BROKER_PREFIX = f"{TAG}:"
"""Put before every key of the Celery transport (its ``global_keyprefix``)."""


def job(job_id: str) -> str:
    """Hash: the job's fields, see :class:`~finetune_queue.contract.job.JobRecord`. Removed, with the job's other keys,
    once the job has ended and its retention (``FINETUNE_RETENTION``) is over."""
    return f"{TAG}:job:{job_id}"


def job_events(job_id: str) -> str:
    """List: the job's events as JSON, oldest first; the event numbered n is at index n - 1."""
    return f"{TAG}:job:{job_id}:events"


def upload_url(job_id: str) -> str:
    """String: the job's presigned upload as JSON, a secret, apart from the job. Expires with the URL."""
    return f"{TAG}:job:{job_id}:upload"


def jobs() -> str:
    """Sorted set: all job ids, scored by their creation (ms)."""
    return f"{TAG}:jobs"


def state(name: str) -> str:
    """Sorted set: ids of the jobs in a state, scored by when they entered it (ms)."""
    return f"{TAG}:state:{name}"


def deadlines() -> str:
    """Sorted set: every job with something left to do, scored by when to look at it again (ms)."""
    return f"{TAG}:deadlines"


def wake() -> str:
    """List of at most one item: pushed when a sleeping dispatcher has something to do earlier than it knew."""
    return f"{TAG}:wake"


def events() -> str:
    """Stream: all events, field ``event`` holding the JSON, trimmed to about a set length."""
    return f"{TAG}:events"


def dead_letters() -> str:
    """Stream: messages that could not become a job, and events that a sink did not take, trimmed to about a set length;
    :mod:`finetune_queue.store.dead_letters` has the fields."""
    return f"{TAG}:dead"


def owners() -> str:
    """Hash: finetune_id -> id of the one job that the training belongs to."""
    return f"{TAG}:owners"


def accounts() -> str:
    """Set: names of the accounts that some worker serves."""
    return f"{TAG}:accounts"


def account(name: str) -> str:
    """Hash: what is known of the account. Its fields by who writes them; times are the server's, in ms.

    :meth:`Accounts.configure`: ``limit`` calls per ``window_ms``; the caps ``max_training``, ``max_submits`` (a day)
    and ``max_transfers``, and ``training_limit_ms``, after which no training counts as in flight; empty for none. The
    hash of an account's transfers (:func:`transfers_of`) has the first two alone.

    :meth:`Accounts.stop_submits`: ``stopped``, "1" while the kill switch is thrown.

    take_slot.lua: ``spent``, the submits of ``spent_day`` (days since 1970, UTC); end_call.lua takes off what was not
    sent.

    end_call.lua, of an outage: ``paused_until``, ``failures`` in a row, ``pause_reason`` for people and ``pause_code``
    for programs, and ``probing``, "1" until a call goes well. ``probe_until`` is until when the one call that tries is
    waited for, and ``probed_by`` its holder: the scripts that give it its slot, reserve.lua and take_slot.lua, set
    them; ``probe`` is its token, from take_slot.lua. Of submits that the provider refuses: ``submits_paused_until``,
    ``submits_refused`` in a row, and ``submits_probe_until`` and ``submits_probe`` for the one submit that tries; the
    reason and code are those above.

    sweep_clock.lua: ``sweep_at``, the next sweep; ``sweep_idle_at``, the same if nobody waits for a call;
    ``sweep_due``, when the share of looking has the calls for it; ``sweep_cost_ms``, what one sweep moves that on by;
    ``sweep_gap_ms``, the least between two; ``sweep_hinted``, "1" if a hint came since the last one was handed out;
    ``looked_at``, when one last saw what Segmind has. When one is handed out (reserve.lua): ``swept_at``. While one
    runs (take_slot.lua): ``sweeping_until``, when it counts as dead. These two move ``sweep_at`` as well, and
    take_slot.lua with a first submit also ``sweep_idle_at``.

    :meth:`SweepClock.learn_training`: ``usual_ms``, how long a training usually takes."""
    return f"{TAG}:account:{name}"


def slots(name: str) -> str:
    """Sorted set: the account's call slots in use, scored by when each is free again (ms)."""
    return f"{TAG}:slots:{name}"


def room(name: str) -> str:
    """Sorted set: the account's waiting room, job ids scored by priority class, priority and age."""
    return f"{TAG}:room:{name}"


def tracked(name: str) -> str:
    """Sorted set: the account's jobs that Segmind works on, scored by when they were first tracked (ms)."""
    return f"{TAG}:tracked:{name}"


def running(state: str) -> str:
    """Sorted set: the jobs in a state that some worker holds, scored by when the lease on the job ends (ms)."""
    return f"{TAG}:running:{state}"


def counters() -> str:
    """Hash: what all processes have counted, see :mod:`finetune_queue.store.counters`."""
    return f"{TAG}:counters"


def api() -> str:
    """String: which API the jobs are for, "sandbox" or "paid"."""
    return f"{TAG}:api"


def write_check() -> str:
    """String: written, and gone at once, to see whether the server takes writes."""
    return f"{TAG}:write_check"


def data_id() -> str:
    """String: a random name for the data of this Redis, given when there is none: if it changes, the data was lost."""
    return f"{TAG}:redis:data"


def emptied() -> str:
    """String: when (ms) a worker saw that this Redis had come back without its data; expires after a day."""
    return f"{TAG}:redis:emptied"


def workers() -> str:
    """Sorted set: what each worker says of itself (:attr:`LiveWorker.member`), scored by when it was last seen (ms)."""
    return f"{TAG}:workers"


def sink_kinds() -> str:
    """Set: the kinds of events that some worker's own sinks (``FINETUNE_SINKS``) want."""
    return f"{TAG}:sink_kinds"


def outbox() -> str:
    """Sorted set: jobs with events that are to be put into their sinks' lines, scored by when (ms)."""
    return f"{TAG}:outbox"


def wake_outbox() -> str:
    """List of at most one item: pushed when a sleeping notifier has something to do earlier than it knew."""
    return f"{TAG}:wake_outbox"


def lines() -> str:
    """Sorted set: the lines in which jobs wait, scored by when each is due (ms), or until when a worker holds it."""
    return f"{TAG}:lines"


def line(name: str) -> str:
    """Sorted set: the jobs with events for the sinks of a line, scored by when each is due (ms)."""
    return f"{TAG}:line:{name}"


def line_state(name: str) -> str:
    """Hash: of a line with its sinks out of reach ``failures`` in a row, ``since`` when (ms), the ``reason``, and until
    when (ms) it is to ``rest``; ``idle`` is the line's score if all of its jobs were put off."""
    return f"{TAG}:line:{name}:state"


def put_off(name: str) -> str:
    """Hash: id of each sink of a line that did not answer -> a :class:`~finetune_queue.store.outbox.PutOff` as JSON."""
    return f"{TAG}:put_off:{name}"


def reached() -> str:
    """Sorted set: the origins of sinks, scored by when one there last answered (ms)."""
    return f"{TAG}:reached"


def job_sinks(job_id: str) -> str:
    """Hash, where ID is a sink's id. ``ID``: how many of the job's events the sink has. ``ID:at``: when (ms) it took
    the last one. ``ID:failures``: attempts in a row that failed, since (ms) ``ID:since``. ``ID:next``: until when (ms)
    it is not tried. ``ID:gone``: it wants no more. ``ID:again``: when (ms) somebody asked for all events again.
    ``line:NAME``: since when (ms) the job is in this line. ``only``: the URL of the one sink that events sent again
    without their job are for."""
    return f"{TAG}:job:{job_id}:sinks"


def deliveries(job_id: str) -> str:
    """List: the latest attempts to deliver the job's events as JSON, newest first."""
    return f"{TAG}:job:{job_id}:deliveries"
