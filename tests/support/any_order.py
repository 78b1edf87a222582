"""How a step of a queue's life happens, with or without a mishap on the way, in tests that take them in any order."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import redis
from hypothesis.stateful import RuleBasedStateMachine

from finetune_queue.contract import EventType, JobRecord, JobState, Stage, Visibility
from finetune_queue.errors import NotPossibleError, QueueUnavailableError
from finetune_queue.store import CALL_MARGIN, START_WITHIN
from support.driver import Driver, Message, WatchedPost
from support.simulation import CALL_TIMEOUT, LAG, LATENCY
from support.world import SETTLE, World

PAUSE_THAT_PAYS_ONCE = CALL_TIMEOUT + SETTLE - START_WITHIN - LATENCY - LAG - 1
"""Seconds that a worker may stand still between its last check and the first byte of its submit: docs/guarantees.md."""

PAUSE_WITHIN_THE_LIMIT = CALL_TIMEOUT - START_WITHIN - LATENCY
"""Seconds that it may stand still there without arriving after its slot has ended."""

PAUSE_THAT_OVERTAKES_NOBODY = CALL_TIMEOUT + CALL_MARGIN - START_WITHIN - LATENCY - 1
"""Seconds that it may stand still there with a change of access before another may be made."""


class Steps(RuleBasedStateMachine):
    """A queue, what was asked of it, and how to take one step further."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.points, self.container = self.world.clock, self.world.points, self.world.container
        self.segmind = self.world.begin()
        self.post = WatchedPost(self.points.reach)
        self.world.queue._submitter._messenger = self.post  # type: ignore[assignment]
        self.driver = Driver(self.container, post=self.post)
        self.jobs: list[str] = []
        self.paid_for: Counter[tuple[str, str]] = Counter()  # by kind of job: how many trainings may have been started
        self.ended: Counter[str] = Counter()  # how often a job may have ended
        self.wanted_cancelled: set[str] = set()
        self.asked: dict[str, tuple[str | None, Visibility]] = {}  # of which model, and what it was last asked to be
        self.mishaps = 0
        self.cuts = 0  # transfers that broke off

    @staticmethod
    def _one_of(among: list[Any], index: int) -> Any:
        return among[index % len(among)]

    def _jobs_in(self, state: JobState) -> list[str]:
        return [job_id for job_id in self.jobs if self._job(job_id).state is state]

    def _with_models(self) -> list[str]:
        """Jobs that have ended and have a training."""
        jobs = map(self._job, self.jobs)
        return [job.id for job in jobs if job.state.terminal and job.finetune_id is not None]

    def _with(self, mishap: Any, work: Callable[[], Any]) -> bool:
        """Do ``work``, with the mishap at one of its calls if there is one: the call, the kind and, of one that stands
        still, how often it does and for how many seconds. Returns False if ``work`` was not done to its end."""
        if mishap is None:
            work()
            return True
        self.mishaps += 1
        at, kind, (times, seconds) = mishap
        what: dict[str, Callable[[str], None]] = {
            "dies": self.points.die,
            "loses Redis": self.points.lose_redis,
            "loses a reply": self.points.after_it(self.points.lose_reply),
            "stands still": partial(self._meanwhile, times=times, seconds=seconds),
            "stands still with the answer": self.points.after_it(
                partial(self._meanwhile, times=times, seconds=seconds)
            ),
            "stands still, all are cancelled": partial(self._meanwhile, times=times, seconds=seconds, cancel=True),
        }

        def sdk_or_worker() -> None:
            try:
                work()
            except QueueUnavailableError:
                raise redis.ConnectionError from None

        return self.points.run(sdk_or_worker, at=at, what=what[kind])

    def _meanwhile(self, call: str, *, times: int, seconds: float, cancel: bool = False) -> None:
        """Let the other workers work ``times`` times, ``seconds`` apart, while one stands still before ``call``."""
        if call.startswith("segmind") and not call.endswith("reply"):
            longest = PAUSE_THAT_PAYS_ONCE
            if call == "segmind: access":
                longest = PAUSE_THAT_OVERTAKES_NOBODY
                # A call that stood still for so long already must not act late in addition: the bound covers both.
                self.segmind.faults = [fault for fault in self.segmind.faults if fault[1] != "acts late"]
            seconds = min(seconds, longest / times)
            late = times * seconds > PAUSE_WITHIN_THE_LIMIT
        else:
            late = False
        undisturbed, self.segmind.faults = self.segmind.faults, []
        for _ in range(times):
            self.clock.advance(seconds)
            self.segmind.finish()
            for job_id in self.jobs if cancel else []:
                self._cancel(job_id, None)
            if call == "segmind: access":
                for job_id, (_, wanted) in list(self.asked.items()):
                    self._set_public(job_id, None, public=wanted is Visibility.PRIVATE)
            self._do_all()
        self.segmind.faults = undisturbed
        self.segmind.late = late

    def _do_all(self) -> None:
        for _ in range(3):
            self.driver.dispatcher.step()
            self._deliver_all()

    def _next_to(self, stage: Stage) -> Message | None:
        """Go on until a message is there for a stage of this kind, and return it."""
        for _ in range(8):
            self.driver.dispatcher.step()
            while self.post.messages:
                message = self.post.messages.pop(0)
                if message.stages[:1] == (stage,):
                    return message
                self._deliver(message, None)
            self.clock.advance(16.0)
            self.segmind.finish()
        return None

    def _deliver_all(self) -> None:
        while self.post.messages:
            self._deliver(self.post.messages.pop(0), None)

    def _deliver(self, message: Message, mishap: Any) -> None:
        if message.sweep or not message.stages:
            if not self._with(mishap, lambda: self.driver.deliver(message)) and not message.sweep:
                self.post.messages.append(message)  # acknowledged late
            return
        went_on: list[bool] = []
        if message.presign:
            self._with(mishap, lambda: went_on.append(self.driver.run_presign(message.subject).proceed))
            if any(went_on):
                self.post.messages.append(replace(message, presign=False))
            return
        stage, *rest = message.stages
        self._with(mishap, lambda: went_on.append(self.driver.run_stage(stage, message.subject).proceed))
        if any(went_on) and rest:
            self.post.messages.append(Message(message.subject, tuple(rest)))

    def _cancel(self, job_id: str, mishap: Any) -> None:
        self.wanted_cancelled.add(job_id)
        self._possible(lambda: self.world.queue.cancel(job_id), mishap)

    def _set_public(self, job_id: str, mishap: Any, *, public: bool) -> None:
        def ask() -> None:
            try:
                model = self.world.queue.set_public(job_id, public).record.finetune_id
            except NotPossibleError:
                return
            self.asked[job_id] = (model, Visibility.PUBLIC if public else Visibility.PRIVATE)

        if not self._with(mishap, ask):
            ask()  # who had no answer asks again

    def _by_hand(self, job_id: str, act: Callable[[str], Any], mishap: Any) -> None:
        before = self._job(job_id)
        self._possible(lambda: act(job_id), mishap)
        # A change of access that was made meanwhile has an event, too, and refuses the retry.
        events = self.container.jobs.events(job_id, after=before.event_seq)
        if all(event.kind is EventType.ACCESS for event in events):
            return
        if before.state is JobState.FAILED:
            self.ended[job_id] += 1
            self.wanted_cancelled.discard(job_id)
            if before.failed_stage is Stage.SUBMIT and before.finetune_id is not None:
                self.paid_for[self._kind(before)] += 1  # a new training in place of one that failed

    def _resolve(self, job_id: str, mishap: Any) -> None:
        job = self._job(job_id)
        if job.state is not JobState.NEEDS_ATTENTION:
            return
        alike = [
            found.finetune_id
            for found in self.segmind.trainings.values()
            if (found.request.name, found.request.data_source_path) == (job.request.name, job.dataset_url)
            and found.finetune_id not in job.ruled_out
            and self.container.jobs.owner_of(found.finetune_id) in {None, job_id}
        ]
        if alike:
            self._by_hand(job_id, partial(self.world.queue.resolve, adopt=alike[0]), mishap)
        else:
            self.paid_for[self._kind(job)] += 1
            self._by_hand(job_id, partial(self.world.queue.resolve, resubmit=True), mishap)

    def _possible(self, act: Callable[[], Any], mishap: Any) -> None:
        def if_possible() -> None:
            try:
                act()
            except NotPossibleError:
                return

        self._with(mishap, if_possible)

    def _job(self, job_id: str) -> JobRecord:
        return self.container.jobs.get(job_id)

    @staticmethod
    def _kind(job: JobRecord) -> tuple[str, str]:
        """Jobs of a kind are the same to Segmind."""
        return job.request.name, job.dataset_url or ""
