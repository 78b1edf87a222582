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
import os
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test

from finetune_queue.contract import JobRecord, JobState, Stage, Visibility
from finetune_queue.store import keys
from finetune_worker.dispatcher import Dispatcher
from finetune_worker.stages.whose import upload_name
from support.any_order import Steps
from support.consistency import check_events, check_sets
from support.driver import Message
from support.samples import sample
from support.simulation import CALL_TIMEOUT, LAG, access_of, weights
from support.world import CALLS, WINDOW, World

MOST_JOBS = 6

LONGEST_DRAIN = 8 * 3600
"""Seconds in which everything must have ended once nothing disturbs it any more."""

MOST_LOOKS = 1000
"""How often the dispatcher may look for work in that time: it sleeps until there is some."""

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


class Queue(Steps):
    """The steps, and what must hold after each."""

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
            self.container.sweep_clock.hint("default")

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

    # what must hold

    @invariant()
    def all_is_well(self) -> None:
        jobs = [self._job(job_id) for job_id in self.jobs]
        self._nothing_is_paid_twice(jobs)
        self._the_limit_holds()
        check_sets(self.world.client, jobs)
        check_events(self.world.client, jobs, self.ended)
        cancelled = {job.id for job in jobs if job.state is JobState.CANCELLED}
        assert cancelled <= self.wanted_cancelled

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
                "test": bool({job.request.name, upload_name(job)} & self.segmind.refused),
                "training_failed": training_of is not None and training_of.error is not None,
                "deploy_failed": training_of is not None and training_of.error is not None and job.weights is not None,
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
            "no_model": job.finetune_id is None,
            "worker_lost": self.mishaps >= self.world.settings.finetune_max_attempts,
        }
        assert reasons.get(job.access.error.code, False), job.access.error


@pytest.mark.timeout(0)
def test_whatever_happens_in_any_order_nothing_is_lost_and_nothing_paid_twice(world: World) -> None:
    examples = int(os.environ.get("EXAMPLES", "10"))
    chosen = settings(
        max_examples=examples,
        stateful_step_count=60,
        database=None,
        print_blob=False,
        phases=[Phase.generate] if os.environ.get("SHRINK") == "0" else list(Phase),
        suppress_health_check=list(HealthCheck),
    )
    Queue.world = world
    if "SEED" in os.environ:
        seed(int(os.environ["SEED"]))(Queue)
    run_state_machine_as_test(Queue, settings=chosen)
