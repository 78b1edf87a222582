"""What is removed once its time is over: finished jobs, old events and dead letters."""

import json
from typing import cast

import redis
import structlog

from finetune_queue.contract.job import JobState
from finetune_queue.store import keys, scripts
from finetune_queue.store.clock import server_ms

log = structlog.get_logger(__name__)

_PAGE = 200


class Retention:
    """Removes what is too old; it remembers which jobs have to stay. Not safe in threads."""

    def __init__(self, client: redis.Redis, seconds: float) -> None:
        """``seconds`` is how long finished jobs, events and dead letters are kept."""
        self._redis = client
        self._kept_ms = int(seconds * 1000)
        self._forget = scripts.load(client, "forget")
        self._staying: dict[JobState, int] = {}

    def forget_finished(self, limit: int = _PAGE) -> int:
        """Remove finished jobs whose retention is over, looking at ``limit`` in each state at most; returns how many.

        A job that has to stay, as a sink lacks its events, does not hold up the others: the next call goes on after it,
        and begins anew once all were seen. Events in the stream and dead letters are removed after the same time. All
        of this takes no memory, so it works on a full server.
        """
        oldest = server_ms(self._redis) - self._kept_ms
        gone = 0
        for state in JobState:
            if not state.terminal:
                continue
            kept = self._staying.get(state, 0)
            ids = cast("list[str]", self._redis.zrangebyscore(keys.state(state), "-inf", oldest, start=kept, num=limit))
            pipe = self._redis.pipeline(transaction=False)
            for job_id in ids:
                # Not the whole record: one that only a newer version can read goes after its time too. It would
                # stay for ever where that version does not come back, and stand in front of those that come after it.
                pipe.hmget(keys.job(job_id), "version", "finetune_id", "ruled_out")
            found = pipe.execute()
            for job_id, (version, finetune_id, ruled_out) in zip(ids, found, strict=True):
                names = [
                    *(keys.job(job_id), keys.job_events(job_id), keys.jobs(), keys.state(state), keys.owners()),
                    *(keys.outbox(), keys.job_sinks(job_id), keys.deliveries(job_id), keys.deadlines()),
                ]
                trainings = [*_listed(ruled_out), *filter(None, [finetune_id])]
                self._forget(names, [job_id, version or "", *trainings], client=pipe)
            removed = sum(pipe.execute())
            if stay := len(ids) - removed:
                log.info("finished_jobs_kept", state=state, jobs=stay)
            self._staying[state] = kept + stay if len(ids) == limit else 0
            gone += removed
        for stream in (keys.events(), keys.dead_letters()):
            self._redis.xtrim(stream, minid=f"{max(0, oldest)}-0", approximate=True)
        return gone


def _listed(text: str | None) -> list[str]:
    """Read a list of trainings; an empty one for a text of another form, which another version may have written."""
    try:
        found = json.loads(text or "[]")
    except ValueError:
        return []
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []
