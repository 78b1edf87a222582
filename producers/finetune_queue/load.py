"""What there is to run now, for each class of workers: what an autoscaler goes by.

Not in it is what more workers would not help: jobs that wait for a call of their account, for Segmind, for an outage to
end, for a cap on spending, or for the account's share of transfers. They are parked in Redis and have no message.
"""

from collections import Counter
from dataclasses import dataclass

from finetune_queue.contract import WaitReason
from finetune_queue.messaging import QUEUE, TRANSFER_QUEUE, Messenger, running_queue, stage_queue
from finetune_queue.store import Deadlines, JobStore, Overview

SOON = 15.0
"""A retry or start that is due within so many seconds counts as due: autoscalers look about as often."""

LOOKED_AT = 200
"""How many deadlines are looked at to count these. Where more are due, the queues are long and say enough."""

_FOR_A_TIME = frozenset({WaitReason.BACKOFF, WaitReason.START})
"""The reasons to wait that only the job's deadline ends."""


@dataclass(frozen=True, slots=True)
class Load:
    """The work of one class of workers: messages in its queue, of all priorities; stages that run; retries and starts
    due soon."""

    queued: int
    running: int
    due: int

    @property
    def total(self) -> int:
        """How many of a worker's threads all of this has or wants."""
        return self.queued + self.running + self.due


class Loads:
    """Measures the load; a few round trips a time."""

    def __init__(self, jobs: JobStore, deadlines: Deadlines, overview: Overview, messenger: Messenger) -> None:
        self._jobs = jobs
        self._deadlines = deadlines
        self._overview = overview
        self._messenger = messenger

    def now(self) -> dict[str, Load]:
        """Return the load of the workers of each queue.

        Raises:
            QueueUnavailableError, redis.RedisError: the broker or the store is out of reach.
        """
        queued = self._messenger.lengths()
        running: Counter[str] = Counter()
        for view in self._overview.look().states:
            running[running_queue(view.state)] += view.running
        jobs = self._jobs.get_many(self._deadlines.soon(SOON, LOOKED_AT))
        waited = [job for job in jobs if not job.owner and job.waiting_for in _FOR_A_TIME and not job.outages]
        due = Counter(stage_queue(job.stage) for job in waited)
        return {queue: Load(queued[queue], running[queue], due[queue]) for queue in (QUEUE, TRANSFER_QUEUE)}
