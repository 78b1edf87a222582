"""Histories of submits whose answers were lost, among trainings that are much like theirs: found in reviews, move by
move. Nothing is paid twice, nobody gets what another asked for, and it does not take hours."""

from collections.abc import Callable

import pytest
from hypothesis.stateful import rule

from finetune_queue.contract import JobRecord, JobState, Stage
from finetune_worker.stages.training_request import training_request
from support.any_order import Steps
from support.samples import sample
from support.world import World

HOUR = 3600.0


class History(Steps):
    """The steps, one after the other as a test wants them."""

    @rule()
    def nothing(self) -> None:
        """Hypothesis wants a rule."""

    def add(self, **request: str) -> str:
        """Submit a job; all are alike but for what is given."""
        fields = {"name": "twin", "dataset": "https://example.com/faces.zip", **request}
        job_id = self.world.queue.submit(sample(**fields, idempotency_key=f"key-{len(self.jobs)}")).id
        self.jobs.append(job_id)
        self.ended[job_id] = 1
        return job_id

    def lose_submit(self, fault: str = "reply lost", *, after: float = 0.0) -> None:
        """Go on to the next submit, so many seconds after the first job at the earliest, and have no answer to it.
        Until then Segmind takes nothing and shows nothing."""
        due = False
        for _ in range(1000):
            if not due:
                due = self.clock.ms >= self.began_ms + after * 1000
                self.segmind.faults = [("submit", fault)] if due else [("list", "429"), ("submit", "429")]
            self.driver.dispatcher.step()
            self._deliver_all()
            if due and not self.segmind.faults:
                return
            self.clock.advance(1.0)
        pytest.fail("no submit came")

    def until(self, done: Callable[[list[JobRecord]], bool], hours: float) -> list[JobRecord]:
        """Let everything go its way, undisturbed; returns the jobs."""
        end = self.clock.ms + hours * HOUR * 1000
        while not done(self.read()) and self.clock.ms < end:
            wait = self.driver.dispatcher.step()
            self._deliver_all()
            self.clock.advance(0.0 if self.post.messages else max(wait, 0.001))
        return self.read()

    def read(self) -> list[JobRecord]:
        return [self._job(job_id) for job_id in self.jobs]

    @property
    def began_ms(self) -> int:
        return self._job(self.jobs[0]).created_ms


@pytest.fixture
def history(world: World) -> History:
    History.world = world
    return History()


def told(jobs: list[JobRecord]) -> bool:
    """Tell whether each job has a training, or waits for a person."""
    return all(job.finetune_id is not None or job.state is JobState.NEEDS_ATTENTION for job in jobs)


@pytest.mark.parametrize("lags", [(0.0, 0.0), (130.0, 0.0), (0.0, 130.0)], ids=lambda lags: f"lists lag by {lags}")
@pytest.mark.parametrize("gap", [90, 110, 130])
@pytest.mark.parametrize("skew", [0, -100], ids=lambda skew: f"a clock that is off by {skew}")
def test_equal_jobs_that_lose_their_answers_some_minutes_apart_are_paid_once_each(
    history: History, gap: int, lags: tuple[float, float], skew: int
) -> None:
    segmind = history.segmind
    segmind.lag = lags[0]
    history.add()
    history.lose_submit()
    segmind.lag = lags[1]
    history.add()
    history.lose_submit(after=gap)
    for training in segmind.trainings.values():
        training.created_ms += skew * 1000
    assert len(segmind.trainings) == 2

    jobs = history.until(told, hours=4)

    assert segmind.accepted.total() == 2, [job.evidence for job in jobs]
    if not skew:
        assert {job.finetune_id for job in jobs} == {"ft-1", "ft-2"}


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_training_on_another_job_s_upload_is_not_that_job_s(history: History, name: str) -> None:
    first = history.add(name="a", dataset=f"file://{history.world.dataset}")
    history.lose_submit("never arrived")
    url = history._job(first).public()["dataset_url"]  # `finetune status` shows it
    words = "a drawing of 1MAN"  # the same pictures once more, which need no upload
    history.add(name=name, dataset=url, instance_prompt=words)
    history.lose_submit()

    jobs = history.until(told, hours=1)

    trained = [history.segmind.trainings[job.finetune_id or ""].request.instance_prompt for job in jobs]
    assert trained == ["photo of 1MAN", words]
    assert history.segmind.accepted.total() == 2


def test_old_trainings_of_the_same_name_do_not_keep_a_lost_submit_for_hours(history: History) -> None:
    segmind = history.segmind
    history.add()
    message = history._next_to(Stage.SUBMIT)
    assert message is not None
    # Nobody's: their jobs ended and were removed (FINETUNE_RETENTION), or another program made them.
    for _ in range(40):
        segmind._accept(training_request(history.read()[0]))
    for training in segmind.trainings.values():
        training.created_ms -= int(40 * 24 * HOUR * 1000)
        training.status = "AVAILABLE"
    segmind.lag = 90.0  # the first list after the answer was lost has the old ones alone
    segmind.faults = [("submit", "reply lost")]
    history._deliver(message, None)

    [job] = history.until(told, hours=20)

    assert job.finetune_id == "ft-41"
    assert history.clock.ms - history.began_ms < 0.2 * HOUR * 1000


@pytest.mark.parametrize("fault", ["reply lost", "never arrived"])
def test_a_job_that_is_made_again_from_its_key_does_not_get_its_predecessor_s_training(
    history: History, fault: str
) -> None:
    dataset = f"file://{history.world.dataset}"
    job_id = history.add(dataset=dataset)
    history.until(told, hours=1)
    history.segmind.finish()
    history.until(lambda jobs: jobs[0].state.terminal, hours=1)
    history.clock.advance(31 * 24 * HOUR)
    history.container.retention.forget_finished()
    history.jobs.clear()

    assert history.add(dataset=dataset) == job_id
    history.lose_submit(fault)
    [job] = history.until(told, hours=1)

    assert job.finetune_id == "ft-2"
    assert history.segmind.accepted.total() == 2


def test_a_job_that_redis_lost_and_its_key_made_again_is_given_its_training_by_hand(history: History) -> None:
    dataset = f"file://{history.world.dataset}"
    history.add(dataset=dataset)
    history.until(told, hours=1)
    history.segmind.finish()
    history.until(lambda jobs: jobs[0].state.terminal, hours=1)
    history.clock.advance(31 * 24 * HOUR)
    history.container.retention.forget_finished()  # as much as an empty server
    history.jobs.clear()
    history.container.accounts.stop_submits("default", stopped=True)

    job_id = history.add(dataset=dataset)
    history.until(lambda jobs: jobs[0].state is JobState.SUBMITTING and not jobs[0].owner, hours=1)
    history.world.queue.resolve(job_id, adopt="ft-1")
    [job] = history.until(told, hours=1)

    assert (job.finetune_id, history.segmind.accepted.total()) == ("ft-1", 1)
