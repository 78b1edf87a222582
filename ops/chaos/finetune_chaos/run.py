"""One run: everything is started, the script is played, then faults stop and what is under way may end."""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from finetune_chaos.callers import Callers
from finetune_chaos.ground import SETTLED, prepared
from finetune_chaos.history import History
from finetune_chaos.nemesis import Nemesis
from finetune_chaos.script import Script
from finetune_chaos.witness import Listener, Witness
from finetune_queue.contract import JobState
from finetune_queue.errors import FineTuneQueueError, NotPossibleError
from finetune_queue.sdk import Job

DRAIN = 240.0
"""Seconds in which everything must have ended once nothing goes wrong any more."""

LOOK_EVERY = 0.5

GIVEN_BACK = 15.0
"""Seconds in which a fresh worker has given back what others had in hand: kombu looks every 10 s."""

LEFT_ALONE = 4
"""One in so many failed jobs is not retried in the end, as not every caller does."""


def run(script: Script, folder: Path, *, workers: int, training: float, say: Callable[[str], None]) -> History:
    """Play the script with everything it makes in ``folder``; returns what was seen.

    Raises:
        ProcessError: a part could not start.
    """
    with ExitStack() as stack:
        scene = stack.enter_context(prepared(folder, script.seed, workers=workers, training=training))
        stack.enter_context(Listener(scene.ground.valkey.url, scene.ground.folder / "published.log"))
        callers = Callers(script, scene)
        stack.callback(callers.close)
        nemesis = Nemesis(script, scene, callers, say)
        witness = Witness(script, scene, callers)
        stack.callback(witness.close)
        callers.start()
        nemesis.run()
        nemesis.stop()
        say(f"{script.seconds:7.2f} faults stop")
        drain = _Drain(script, callers, nemesis, witness)
        late = drain.run()
        say(f"{script.seconds + drain.seconds:7.2f} {'deadline' if late else 'everything has ended'}")
        return witness.collect(nemesis, left_alone=drain.left_alone, resolved=drain.resolved)


class _Drain:
    """Waits for the end of everything; callers retry what failed, and an operator resolves what needs a person."""

    def __init__(self, script: Script, callers: Callers, nemesis: Nemesis, witness: Witness) -> None:
        self.left_alone: set[str] = set()
        self.resolved = 0
        self._of_others: set[str] = set()
        self.seconds = 0.0
        self._script = script
        self._callers = callers
        self._nemesis = nemesis
        self._witness = witness

    def run(self) -> bool:
        """Return whether the time was over before the end."""
        began = time.monotonic()
        submitted = self._callers.finish(DRAIN / 2)
        renewed, told_again = False, False
        while self.seconds < DRAIN:
            self.seconds = time.monotonic() - began
            self._nemesis.workers.keep()
            with suppress(FineTuneQueueError):  # a connection of the time before the calm
                if submitted and self._over():
                    return False
            if self.seconds > SETTLED and not renewed:
                # An hour is over for messages that died in a worker's hand; a fresh worker gives them back first.
                self._witness.age_unacknowledged()
                self._nemesis.workers.start_one()
                renewed = True
            if self.seconds > SETTLED + GIVEN_BACK and not told_again:
                self._callers.send_lost_again()
                told_again = True
            time.sleep(LOOK_EVERY)
        return True

    def _over(self) -> bool:
        queue, promised = self._callers.queue, self._callers.promised
        counts = queue.counts()
        if self.seconds > SETTLED:  # no submit is on its way any more
            for job in queue.list(state=JobState.NEEDS_ATTENTION, limit=1000):
                self._resolve(job)
        for job in queue.list(state=JobState.FAILED, limit=10_000):
            self._retry(job)
        if sum(counts.values()) < len(promised):
            return False
        live = sum(count for state, count in counts.items() if not state.terminal)
        failed = {job.id for job in queue.list(state=JobState.FAILED, limit=10_000)}
        return live == 0 and failed <= self.left_alone and not any(self._witness.left_over().values())

    def _retry(self, job: Job) -> None:
        if job.id in self.left_alone:
            return
        first = job.id not in self._callers.asked_to_retry
        deadline = job.record.request.deadline is not None
        if deadline or (first and int(job.id[-4:], 16) % LEFT_ALONE == 0):
            self.left_alone.add(job.id)
            return
        with suppress(NotPossibleError):
            self._callers.retry(job.id)

    def _resolve(self, job: Job) -> None:
        """Do what an operator does who looks into Segmind's console: adopt what nobody owns, or submit again."""
        owned = {other.record.finetune_id for other in self._callers.queue.list(limit=1_000_000)}
        free = [
            training.finetune_id
            for training in self._witness.trainings()
            if training.name == job.record.request.name
            and training.finetune_id not in owned | self._of_others
            and training.finetune_id not in job.record.ruled_out
        ]
        try:
            if free:
                job.resolve(adopt=free[0])
            else:
                job.resolve(resubmit=True)
        except NotPossibleError as error:
            if "belongs to job" in str(error):
                self._of_others.add(free[0])  # to one that has had another since its retry
        else:
            self.resolved += 1
