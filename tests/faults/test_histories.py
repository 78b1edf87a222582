"""Histories that were found by thinking, each played as it was thought of; `test_any_order.py` leaves it to chance."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis.stateful import rule

from finetune_queue.contract import Access, JobState, Visibility
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


def test_the_model_counts_no_retry_that_a_change_of_access_refused(history: History) -> None:
    job_id = failed_training(history)
    history.world.queue.set_public(job_id, public=True)

    history._by_hand(job_id, history.world.queue.retry, (1, "stands still", (1, 40.0)))

    assert history._job(job_id).access == Access(confirmed=Visibility.PUBLIC)
    check_events(history.world.client, [history._job(job_id)], history.ended)


def test_each_history_begins_at_the_same_time(history: History) -> None:
    history.clock.advance(30 * 86_400)
    assert History().clock.ms == START_MS
