"""Anything in any order: a queue's whole life as a state machine, against a small model of what may have happened.

Hypothesis chooses what comes next: a message is delivered, repeated or lost, a worker dies or stands still or loses
Redis at any of its calls, time passes, Segmind refuses, breaks or answers nobody, a person cancels, retries, resolves,
makes a model public or private. After each step the store must be consistent; in the end everything must come to its
end by itself, and a model be as was asked last. The scripts, the stages, the dispatcher and the SDK are the real ones,
on a real Valkey; only time is the test's own.

`make test` tries a few, `make test-crash` hundreds. EXAMPLES=n chooses how many, SEED=n which; SHRINK=0 shows what was
found as it was found, soon.
"""

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
import redis
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from finetune_queue.contract import TRANSITIONS, EventType, JobRecord, JobState, Stage, Visibility
from finetune_queue.contract.event import type_name
from finetune_queue.errors import NotPossibleError, QueueUnavailableError
from finetune_queue.messaging import producer_app
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.settings import Settings
from finetune_queue.store import CALL_MARGIN, keys, transfers_of
from finetune_worker import dispatcher
from finetune_worker.container import Container
from finetune_worker.dispatcher import Dispatcher
from finetune_worker.stages.calls import FRESH
from support.driver import Driver, Message, WatchedPost
from support.images import make_dataset_zip
from support.samples import sample
from support.simulation import CALL_TIMEOUT, LAG, LATENCY, Clock, Interruption, Segmind, access_of, weights

CALLS, WINDOW = 5, 60
SETTLE = 150.0
MOST_JOBS = 6

PAUSE_THAT_PAYS_ONCE = CALL_TIMEOUT + SETTLE - FRESH - LATENCY - LAG - 1
"""Seconds that a worker may stand still between its last check and the first byte of its submit: docs/guarantees.md."""

PAUSE_WITHIN_THE_LIMIT = CALL_TIMEOUT - FRESH - LATENCY
"""Seconds that it may stand still there without arriving after its slot has ended."""

PAUSE_THAT_OVERTAKES_NOBODY = CALL_TIMEOUT + CALL_MARGIN - FRESH - LATENCY - 1
"""Seconds that it may stand still there with a change of access before another may be made."""

LONGEST_DRAIN = 8 * 3600
"""Seconds in which everything must have ended once nothing disturbs it any more."""

MOST_LOOKS = 1000
"""How often the dispatcher may look for work in that time: it sleeps until there is some."""


class World:
    """One queue with its workers' parts, used for one example after the other."""

    def __init__(self, url: str, folder: Path) -> None:
        self.client: Any = redis.Redis.from_url(url, decode_responses=True, socket_timeout=10)
        self.clock = Clock(self.client)
        self.points = Interruption(self.clock)
        self.dataset = make_dataset_zip(folder / "faces.zip", count=1, size=(512, 512))
        self.settings = Settings(
            segmind_api_key="SG_0123456789abcdef",
            segmind_rate_limit=f"{CALLS}/{WINDOW}",
            segmind_call_timeout=CALL_TIMEOUT,
            finetune_settle_time=SETTLE,
            finetune_redis_url=url,
            finetune_artifact_url=f"file://{folder}/artifacts",
            finetune_dataset_roots=str(folder),
        )

    def open(self, patch: pytest.MonkeyPatch) -> None:
        self.clock.rule(patch)
        patch.setattr(dispatcher, "LONGEST_SLEEP", 3600.0)  # a wake-up that never comes must not be made up for
        self.container = Container.build(self.settings, producer_app(self.settings))
        self.queue = FineTuneQueue(self.settings)
        self.points.patch(patch.setattr)
        self.patch = patch

    def begin(self) -> Segmind:
        """Empty it and return a Segmind of its own."""
        self.client.flushdb()
        self.clock.ms = self.clock.ms // 86_400_000 * 86_400_000 + 86_400_000
        self.clock.advance(0)
        segmind = Segmind(self.clock, self.points)
        segmind.stand_in(self.patch)
        self.container._clients["default"] = segmind  # type: ignore[assignment]
        self.container.announce_accounts()
        return segmind

    def close(self) -> None:
        self.container.close()
        self.queue.close()
        self.client.close()


TROUBLE = [
    *itertools.product(
        ["any", "presign", "submit", "submit", "details", "list", "access"],
        ["429", "429 with a time", "refused connection", "slow", "never arrived", "reply lost", "reply lost"],
    ),
    *itertools.product(["presign", "submit", "details", "access"], ["rejected"]),
    ("access", "acts late"),
    *itertools.product(["upload", "download"], ["cut"] * 3),
]

ACCESS_TROUBLE: list[list[tuple[str, str]]] = [[], [], *([("access", kind)] for kind in ("acts late", "reply lost"))]
"""What comes with a change of access: those that may take effect after a later one are the ones to fear."""

STATES = {type_name(EventType(state)): state for state in JobState}

PLACES = ["segmind", "reply", "take_slot", "WAITAOF", "end_call", "storage", "message", "file replace"]
"""Calls that much hangs on, by a part of their names."""

MISHAPS = st.sampled_from(
    [
        *("dies", "loses Redis", "loses a reply"),
        *("stands still", "stands still with the answer", "stands still, all are cancelled"),
    ]
)
PAUSES = st.sampled_from([(1, 40.0), (2, 31.0), (4, 70.0), (3, 400.0)])  # how often how many seconds

mishaps = st.none() | st.tuples(st.sampled_from(PLACES) | st.integers(0, 40), MISHAPS, PAUSES)
indexes = st.integers(0, 11)


class Queue(RuleBasedStateMachine):
    """The steps, and what must hold after each."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.points, self.container = self.world.clock, self.world.points, self.world.container
        self.segmind = self.world.begin()
        self.post = WatchedPost(self.points.reach)
        self.world.queue._submitter._messenger = self.post  # type: ignore[assignment]
        self.driver = Driver(self.container, post=self.post)
        self.jobs: list[str] = []
        self.paid_for: Counter[tuple[str, str]] = Counter()  # how many trainings may have been started
        self.ended: Counter[str] = Counter()  # how often a job may have ended
        self.wanted_cancelled: set[str] = set()
        self.asked: dict[str, tuple[str | None, Visibility]] = {}  # of which model, and what it was last asked to be
        self.mishaps = 0
        self.cuts = 0

    # what happens

    @precondition(lambda self: len(self.jobs) < MOST_JOBS)
    @rule(public=st.booleans(), wait_for=st.sampled_from(["trained", "trained", "available"]), mishap=mishaps)
    def submit(self, *, public: bool, wait_for: str, mishap: Any) -> None:
        number = len(self.jobs) + 1
        # All public ones are alike but for their key, so only the time of its creation tells whose a training is.
        dataset = "https://example.com/faces.zip" if public else f"file://{self.world.dataset}"
        name = "twin" if public else f"face-{number}"
        request = sample(name=name, dataset=dataset, wait_for=wait_for, idempotency_key=f"key-{number}")
        while not self._with(mishap, lambda: self.world.queue.submit(request)):
            mishap = None  # a producer that had no answer asks again
        job = self.world.queue.submit(request)
        self.jobs.append(job.id)
        self.ended[job.id] = 1

    @precondition(lambda self: self.post.messages)
    @rule(index=indexes, mishap=mishaps)
    def deliver(self, index: int, mishap: Any) -> None:
        self._deliver(self.post.messages.pop(index % len(self.post.messages)), mishap)

    @precondition(lambda self: self.post.messages)
    @rule(index=indexes)
    def repeat(self, index: int) -> None:
        self.post.messages.append(self.post.messages[index % len(self.post.messages)])

    @precondition(lambda self: self.post.messages)
    @rule(index=indexes)
    def lose(self, index: int) -> None:
        self.post.messages.pop(index % len(self.post.messages))

    @rule(mishap=mishaps)
    def dispatch(self, mishap: Any) -> None:
        if not self._with(mishap, self.driver.dispatcher.step):
            self.driver.dispatcher = Dispatcher(self.driver.container)

    @rule(seconds=st.sampled_from([0.5, 5.0, 16.0, 31.0, 61.0, 130.0, 310.0, 910.0]))
    def tick(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(mishap=mishaps, rounds=st.integers(1, 6), seconds=st.sampled_from([1.0, 16.0, 61.0, 130.0]))
    def work(self, mishap: Any, rounds: int, seconds: float) -> None:
        """Go on undisturbed for a while, so that jobs come far, and then not."""
        for _ in range(rounds):
            self._do_all()
            self.clock.advance(seconds)
        self.dispatch(mishap)

    @rule(
        public=st.booleans(),
        stage=st.sampled_from([Stage.SUBMIT, *Stage]),
        mishap=st.tuples(st.sampled_from(PLACES), MISHAPS, PAUSES),
        lag=st.sampled_from([0.0, LAG]),
        then=st.integers(0, 12),
    )
    def one_stage_is_disturbed(self, *, public: bool, stage: Stage, mishap: Any, lag: float, then: int) -> None:
        """Go on undisturbed to some job's next stage of this kind, then not, then again."""
        if len(self.jobs) < MOST_JOBS:
            self.submit(public=public, wait_for="trained", mishap=None)
        message = self._next_to(stage)
        if message is not None:
            self.segmind.lag = lag
            self._deliver(message, mishap)
        for _ in range(then):
            self.clock.advance(16.0)
            self._do_all()

    @rule(trouble=st.sampled_from(TROUBLE))
    def trouble_at_segmind(self, trouble: tuple[str, str]) -> None:
        self.segmind.faults.append(trouble)
        self.cuts += trouble[1] == "cut"

    @rule(lag=st.sampled_from([0.0, LAG]), stopped=st.booleans(), hint=st.booleans())
    def other_things_change(self, *, lag: float, stopped: bool, hint: bool) -> None:
        self.segmind.lag = lag
        self.container.accounts.stop_submits("default", stopped=stopped)
        if hint:
            self.container.accounts.hint("default")

    @precondition(lambda self: self.segmind.trainings)
    @rule(
        index=indexes, status=st.sampled_from(["DATA_PROCESSING", "TRAINING_COMPLETED", *["AVAILABLE"] * 3, "FAILED"])
    )
    def a_training_moves(self, index: int, status: str) -> None:
        self._one_of(list(self.segmind.trainings.values()), index).move(status)

    @precondition(lambda self: self.jobs)
    @rule(index=indexes, mishap=mishaps)
    def cancel(self, index: int, mishap: Any) -> None:
        self._cancel(self._one_of(self.jobs, index), mishap)

    @precondition(lambda self: self._jobs_in(JobState.FAILED))
    @rule(index=indexes, mishap=mishaps)
    def retry(self, index: int, mishap: Any) -> None:
        self._by_hand(self._one_of(self._jobs_in(JobState.FAILED), index), self.world.queue.retry, mishap)

    @precondition(lambda self: self._jobs_in(JobState.NEEDS_ATTENTION))
    @rule(index=indexes, mishap=mishaps)
    def resolve(self, index: int, mishap: Any) -> None:
        self._resolve(self._one_of(self._jobs_in(JobState.NEEDS_ATTENTION), index), mishap)

    @precondition(lambda self: self._with_models())
    @rule(
        index=indexes,
        public=st.booleans(),
        mishap=mishaps,
        then=st.none() | st.tuples(st.sampled_from(["segmind", "reply", "take_slot"]), MISHAPS, PAUSES),
        trouble=st.sampled_from(ACCESS_TROUBLE),
        back=st.sampled_from([None, 1.0, 5.0, 16.0]),
    )
    def set_public(
        self, *, index: int, public: bool, mishap: Any, then: Any, trouble: list[tuple[str, str]], back: float | None
    ) -> None:
        """Ask for it, have the call made, and perhaps ask for the opposite after so many seconds."""
        job_id = self._one_of(self._with_models(), index)
        self._set_public(job_id, mishap, public=public)
        self.segmind.faults += trouble
        self.driver.dispatcher.step()
        asked = Message(job_id, access=True)
        if asked in self.post.messages:
            self.post.messages.remove(asked)
            self._deliver(asked, then)
        if back is not None:
            self.clock.advance(back)
            self._set_public(job_id, None, public=not public)
            self._do_all()

    # how it happens

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
        """Do it, and have its mishap on the way; False if it was not done to its end."""
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
        """Let the others work while one stands still before ``call``."""
        if call.startswith("segmind") and not call.endswith("reply"):
            longest = PAUSE_THAT_PAYS_ONCE
            if call == "segmind: access":
                longest = PAUSE_THAT_OVERTAKES_NOBODY
                # What was on its way for so long already must not lie about elsewhere, too.
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
        after = self._job(job_id)
        if after.event_seq == before.event_seq:
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

    # what must hold

    def _job(self, job_id: str) -> JobRecord:
        return self.container.jobs.get(job_id)

    @staticmethod
    def _kind(job: JobRecord) -> tuple[str, str]:
        """Jobs of a kind are the same to Segmind."""
        return job.request.name, job.dataset_url or ""

    @invariant()
    def all_is_well(self) -> None:
        jobs = [self._job(job_id) for job_id in self.jobs]
        self._nothing_is_paid_twice(jobs)
        self._the_limit_holds()
        self._every_set_agrees_with_the_jobs(jobs)
        self._events_tell_what_happened_in_order_and_once(jobs)

    def _nothing_is_paid_twice(self, jobs: list[JobRecord]) -> None:
        wanted = self.paid_for + Counter(map(self._kind, jobs))
        for kind, count in self.segmind.accepted.items():
            assert count <= wanted[kind], f"{kind} was paid {count} times"

    def _the_limit_holds(self) -> None:
        arrivals = self.segmind.arrivals
        for first, after_it in zip(arrivals, arrivals[CALLS:], strict=False):
            assert after_it - first >= WINDOW * 1000, arrivals
        taken = self.world.client.zcount(keys.slots("default"), f"({self.clock.ms}", "+inf")
        assert taken <= CALLS

    def _every_set_agrees_with_the_jobs(self, jobs: list[JobRecord]) -> None:
        client = self.world.client
        live = {job.id for job in jobs if not job.state.terminal}
        unsettled = {job.id for job in jobs if not job.settled}
        assert set(client.zrange(keys.deadlines(), 0, -1)) == unsettled
        for state in JobState:
            assert set(client.zrange(keys.state(state), 0, -1)) == {job.id for job in jobs if job.state is state}
        rooms = [client.zrange(keys.room(name), 0, -1) for name in ("default", transfers_of("default"))]
        assert set(rooms[0]) <= unsettled
        assert rooms[1] == []
        tracked = set(client.zrange(keys.tracked("default"), 0, -1))
        assert {job.id for job in jobs if job.tracked} <= tracked <= live
        owners = client.hgetall(keys.owners())
        for job in jobs:
            assert job.finetune_id is None or owners[job.finetune_id] == job.id
            assert not (job.settled and job.owner)
            assert job.error is None or job.error.code != "internal_error", job.error
            assert job.state is not JobState.CANCELLED or job.id in self.wanted_cancelled

    def _events_tell_what_happened_in_order_and_once(self, jobs: list[JobRecord]) -> None:
        client = self.world.client
        stream: dict[str, list[dict[str, Any]]] = {job.id: [] for job in jobs}
        for _, fields in client.xrange(keys.events()):
            event = json.loads(fields["event"])
            stream[event["subject"]].append(event)
        for job in jobs:
            events = stream[job.id]
            assert events == [json.loads(row) for row in client.lrange(keys.job_events(job.id), 0, -1)]
            assert [event["id"] for event in events] == [f"{job.id}-{number + 1}" for number in range(job.event_seq)]
            states = [STATES[event["type"]] for event in events if event["type"] in STATES]
            assert states[0] is JobState.ACCEPTED
            assert states[-1] is job.state
            for before, after in itertools.pairwise(states):
                assert after in TRANSITIONS[before], states
            ends = sum(state.terminal for state in states)
            assert ends == self.ended[job.id] - (not job.state.terminal), states

    # how it ends

    def teardown(self) -> None:
        self.all_is_well()
        self.segmind.faults.clear()
        self.container.accounts.stop_submits("default", stopped=False)
        undisturbed_since = self.clock.ms
        looks = 0
        while not all(self._job(job_id).settled for job_id in self.jobs):
            looks += 1
            assert looks < MOST_LOOKS
            assert self.clock.ms - undisturbed_since < LONGEST_DRAIN * 1000, self._stuck()
            self.segmind.finish()
            for job_id in self.jobs:
                self._resolve(job_id, None)
            wait = self.driver.dispatcher.step()
            self._deliver_all()
            self.clock.advance(0.0 if self.post.messages else max(wait, 0.001))
        self.all_is_well()
        for job_id in self.jobs:
            self._check_end(self._job(job_id))
            self._check_access(self._job(job_id))
        self.clock.advance(2 * (CALL_TIMEOUT + WINDOW))
        assert self.world.client.zcount(keys.slots("default"), f"({self.clock.ms}", "+inf") == 0

    def _stuck(self) -> list[dict[str, Any]]:
        shown = {
            "id",
            "state",
            "owner",
            "waiting_for",
            "attempts",
            "takeovers",
            "error",
            "intent_ms",
            "looks",
            "evidence",
            "access",
        }
        jobs = [self._job(job_id) for job_id in self.jobs]
        return [job.model_dump(mode="json", include=shown) for job in jobs if not job.settled]

    def _check_end(self, job: JobRecord) -> None:
        assert job.state.terminal, job
        if job.state is JobState.SUCCEEDED:
            assert job.weights is not None
            assert job.finetune_id is not None
            assert Path(urlsplit(job.weights.url).path).read_bytes() == weights(job.finetune_id)
            training = self.segmind.trainings[job.finetune_id]
            assert (training.request.name, training.request.data_source_path) == self._kind(job)
        elif job.state is JobState.FAILED:
            assert job.error is not None
            training_of = self.segmind.trainings.get(job.finetune_id or "")
            reasons = {
                "test": bool({job.request.name, job.id} & self.segmind.refused),
                "training_failed": training_of is not None and training_of.error is not None,
                "worker_lost": self.mishaps >= self.world.settings.finetune_max_attempts,
                "connection_lost": self.cuts >= self.world.settings.finetune_max_attempts,
                "training_too_long": self.clock.ms - job.created_ms
                >= self.world.settings.finetune_training_limit * 1000,
            }
            assert reasons.get(job.error.code, False), job.error

    def _check_access(self, job: JobRecord) -> None:
        """What was asked for last holds, or the job says why not."""
        self.segmind.catch_up()
        model, wanted = self.asked.get(job.id, (None, Visibility.PRIVATE))
        if job.access is None:
            assert model is None or model != job.finetune_id  # a retry made another one
            return
        assert job.access.wanted is None
        if job.access.error is None:
            assert job.access.confirmed is wanted
            assert self.segmind.trainings[job.finetune_id or ""].public is (wanted is Visibility.PUBLIC)
            return
        reasons = {
            "test": access_of(job.finetune_id or "") in self.segmind.refused,
            "worker_lost": self.mishaps >= self.world.settings.finetune_max_attempts,
        }
        assert reasons.get(job.access.error.code, False), job.access.error


@pytest.fixture
def world(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(redis_url, tmp_path)
    made.open(monkeypatch)
    yield made
    made.close()


@pytest.mark.timeout(0)
def test_whatever_happens_in_any_order_nothing_is_lost_and_nothing_paid_twice(world: World) -> None:
    examples = int(os.environ.get("EXAMPLES", "15"))
    chosen = settings(
        max_examples=examples,
        stateful_step_count=60,
        deadline=None,
        database=None,
        print_blob=False,
        phases=[Phase.generate] if os.environ.get("SHRINK") == "0" else list(Phase),
        suppress_health_check=list(HealthCheck),
    )
    Queue.world = world
    if "SEED" in os.environ:
        seed(int(os.environ["SEED"]))(Queue)
    run_state_machine_as_test(Queue, settings=chosen)
