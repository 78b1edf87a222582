"""Histories that were found by thinking, each played as it was thought of; `test_any_order.py` leaves it to chance."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis.stateful import rule

from finetune_queue.contract import Access, JobState, Stage, Visibility, WaitReason
from finetune_queue.errors import NotPossibleError
from finetune_queue.storage import UnavailableError
from finetune_queue.store import keys
from support.any_order import Steps
from support.consistency import check_events
from support.samples import sample
from support.simulation import START_MS
from support.world import World


class History(Steps):
    """A queue whose steps a test takes one by one."""

    @rule()
    def nothing(self) -> None:
        """A machine must have a rule."""

    def submit(self, **request: Any) -> str:
        """Return the id of a new job."""
        known = {"name": "face", "dataset": f"file://{self.world.dataset}", "idempotency_key": f"key-{len(self.jobs)}"}
        job = self.world.queue.submit(sample(**known | request))
        self.jobs.append(job.id)
        self.ended[job.id] = 1
        return job.id

    def go_on(self, seconds: float, *, until: Callable[[], bool], step: float = 16.0) -> None:
        """Do what there is to do for so long, or until something holds."""
        end = self.clock.ms + seconds * 1000
        while not until() and self.clock.ms < end:
            self._do_all()
            self.clock.advance(step)

    def state(self, job_id: str) -> JobState:
        return self._job(job_id).state

    def train(self, status: str) -> None:
        """Let all trainings come to a status."""
        for training in self.segmind.trainings.values():
            training.move(status)


@pytest.fixture
def history(world: World) -> History:
    History.world = world
    return History()


def failed_training(history: History) -> str:
    job_id = history.submit()
    history.go_on(600, until=lambda: history.state(job_id) is JobState.TRAINING)
    history.train("FAILED")
    history.go_on(3600, until=lambda: history.state(job_id) is JobState.FAILED)
    assert history.state(job_id) is JobState.FAILED
    return job_id


def deployed(history: History) -> str:
    """Return a job whose weights are stored and whose model is deployed; its manifest is to be stored next."""
    job_id = history.submit(wait_for="available")
    history.go_on(600, until=lambda: history.state(job_id) is JobState.TRAINING)
    history.train("TRAINING_COMPLETED")
    history.go_on(3600, until=lambda: history.state(job_id) is JobState.DEPLOYING)
    history.train("AVAILABLE")
    return job_id


class SlowStore:
    """In place of `put_bytes`, a store that takes its time while the rest of the workers goes on."""

    def __init__(self, history: History, seconds: int, *, away: int = 0) -> None:
        """Refuses its first ``away`` tries after that time."""
        self.tries = 0
        self._history = history
        self._seconds = seconds
        self._away = away
        place = type(history.container.artifacts)
        put = place.put_bytes

        def put_bytes(place: Any, data: bytes, name: str) -> Any:
            self.tries += 1
            for _ in range(self._seconds):
                self._others_work()
            if self.tries <= self._away:
                raise UnavailableError("The store gave no answer.")
            return put(place, data, name)

        history.world.patch.setattr(place, "put_bytes", put_bytes)

    def _others_work(self) -> None:
        history = self._history
        history.clock.advance(1.0)
        history.driver.dispatcher.step()
        for message in [message for message in history.post.messages if message.sweep]:
            history.post.messages.remove(message)
            history.driver.deliver(message)


def test_an_hour_without_the_artifact_store_makes_no_event_and_no_haste_of_a_deployed_job(history: History) -> None:
    job_id = deployed(history)
    store = SlowStore(history, 0, away=10_000)
    history.go_on(600, until=lambda: store.tries > 0)
    before = history._job(job_id)

    history.go_on(3600, until=lambda: False, step=5.0)  # 720 looks, each of which could be a try

    after = history._job(job_id)
    assert (after.stage, after.event_seq) == (Stage.PUBLISH, before.event_seq)
    assert store.tries < 30  # its backoff grows to five minutes
    assert (after.attempts, after.outages) == (0, store.tries)


def test_a_store_that_takes_25_s_gets_the_manifest_of_a_deployed_job_at_once(history: History) -> None:
    job_id = deployed(history)
    store = SlowStore(history, 25)
    history.go_on(900, until=lambda: history.state(job_id).terminal, step=1.0)
    assert (history.state(job_id), store.tries) == (JobState.SUCCEEDED, 1)


def test_a_change_of_access_that_has_no_model_any_more_asks_segmind_for_nothing(history: History) -> None:
    job_id = failed_training(history)
    history.world.queue.set_public(job_id, public=True)  # not made yet: no worker, no slot, a pause
    history.container.accounts.stop_submits("default", stopped=True)
    history.world.queue.retry(job_id)  # wants a new training ...
    history.world.queue.cancel(job_id)  # ... and then does not
    arrived = len(history.segmind.arrivals)

    history.go_on(3600, until=lambda: history._job(job_id).settled)

    job = history._job(job_id)
    assert job.access is not None
    assert job.access.error is not None
    assert (job.state, job.access.wanted, job.access.error.code) == (JobState.CANCELLED, None, "no_model")
    assert job.access.error.message == (
        "The job was cancelled without a training at Segmind, so there is no model to make public."
    )
    assert len(history.segmind.arrivals) == arrived


def test_a_retry_does_not_let_a_change_of_access_pass_the_one_on_its_way(history: History) -> None:
    job_id = history.submit()
    history.go_on(600, until=lambda: history.state(job_id) is JobState.TRAINING)
    history.segmind.faults = [("download", "cut")] * 8
    history.segmind.finish()
    history.go_on(7200, until=lambda: history.state(job_id) is JobState.FAILED, step=61.0)
    queue, segmind = history.world.queue, history.segmind
    queue.set_public(job_id, public=True)
    said: list[str] = []
    call = segmind.set_access

    def slow(finetune_id: str, *, public: bool) -> None:
        if not said:
            with pytest.raises(NotPossibleError) as refused:
                queue.retry(job_id)
            said.append(str(refused.value))
            with pytest.raises(NotPossibleError):
                queue.set_public(job_id, public=False)
        call(finetune_id, public=public)

    history.world.patch.setattr(segmind, "set_access", slow)
    history.go_on(600, until=lambda: history._job(job_id).settled)

    assert said == [
        f"A change of job {job_id}'s access is on its way to Segmind. Try the retry again in a minute.",
    ]
    assert history._job(job_id).access == Access(confirmed=Visibility.PUBLIC)
    assert queue.retry(job_id).state is JobState.DOWNLOADING


@pytest.mark.parametrize("asked", ["after it ended", "before it ended"])
def test_a_cancel_that_comes_too_late_makes_no_haste_of_a_parked_change_of_access(history: History, asked: str) -> None:
    job_id = history.submit()
    history.go_on(600, until=lambda: history.state(job_id) is JobState.TRAINING)
    history.segmind.finish()
    history.go_on(3600, until=lambda: history.state(job_id) is JobState.SUCCEEDED)
    client = history.world.client
    client.hset(keys.account("default"), "paused_until", "99999999999999")
    history.world.queue.set_public(job_id, public=True)
    if asked == "before it ended":  # of a stage that had done all when it was asked
        client.hset(keys.job(job_id), "cancel_requested", "1")
    tries: list[bool] = []
    take = history.container.budget.take

    def take_late(*args: Any, **options: Any) -> Any:
        # What is left of a cancel that saw the job before it ended.
        tries.append(history.container.jobs.request_cancel(job_id))
        return take(*args, **options)

    history.world.patch.setattr(history.container.budget, "take", take_late)
    for _ in range(20):
        history._do_all()
        history.clock.advance(1.0)

    assert tries == [False]


def test_the_model_counts_no_retry_that_a_change_of_access_refused(history: History) -> None:
    job_id = failed_training(history)
    history.world.queue.set_public(job_id, public=True)

    history._by_hand(job_id, history.world.queue.retry, (1, "stands still", (1, 40.0)))

    assert history._job(job_id).access == Access(confirmed=Visibility.PUBLIC)
    check_events(history.world.client, [history._job(job_id)], history.ended)


def test_each_history_begins_at_the_same_time(history: History) -> None:
    history.clock.advance(30 * 86_400)
    assert History().clock.ms == START_MS


def test_a_store_that_hangs_for_longer_than_a_lease_ends_no_paid_job(history: History) -> None:
    job_id = history.submit()
    history.go_on(600, until=lambda: history.state(job_id) is JobState.TRAINING)
    history.segmind.finish()
    store = SlowStore(history, 32, away=11)

    history.go_on(7200, until=lambda: history.state(job_id).terminal)

    job = history._job(job_id)
    assert (job.state, job.takeovers, store.tries) == (JobState.SUCCEEDED, 0, 12)


@pytest.mark.parametrize("moved", [False, True])
def test_after_a_long_pause_one_list_call_is_enough_for_all_trainings(history: History, *, moved: bool) -> None:
    jobs = [history.submit(name=f"face-{number}") for number in range(4)]
    history.go_on(900, until=lambda: all(history.state(job_id) is JobState.TRAINING for job_id in jobs))
    client = history.world.client
    pause = {"paused_until": history.clock.ms + 1_000_000, "probing": 1}
    client.hset(keys.account("default"), mapping=pause)
    history.go_on(1000, until=lambda: False)
    assert client.zcard(keys.room("default")) == 4  # unseen for so long, each wants to ask for its own
    calls: set[str] = set()
    call = history.segmind._call

    def noted(operation: str, *rest: Any) -> Any:
        calls.add(operation)
        return call(operation, *rest)

    history.world.patch.setattr(history.segmind, "_call", noted)
    if moved:
        history.train("DATA_PROCESSING")

    history.go_on(1000, until=lambda: False)

    assert calls == {"list"}
    assert client.zcard(keys.room("default")) == 0
    for job in map(history._job, jobs):
        assert (job.waiting_for, job.event_seq) == (WaitReason.PROVIDER, 5 if moved else 4)
