"""Messages that come twice, at once, in the wrong order, or not at all: a job goes its way once all the same."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from finetune_queue.contract import JobRecord, JobState, Stage
from finetune_queue.messaging import CONTINUE
from finetune_queue.sdk import FineTuneQueue
from segmind_sandbox.testing import LiveSandbox
from support.driver import Driver, Message, Post
from support.images import make_dataset_folder
from support.lane import SECONDS, Lane, open_lanes
from support.until import until


@pytest.fixture
def lane(sandbox: LiveSandbox, valkey: Any, tmp_path: Path) -> Iterator[Lane]:
    dataset = make_dataset_folder(tmp_path / "images", count=4, size=(32, 32))
    with open_lanes(1, sandbox, valkey.url, tmp_path, dataset) as [opened]:
        yield opened


class Lossy(Post):
    """Loses every n-th message."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self._every = every
        self.sent = 0

    def lost(self) -> bool:
        self.sent += 1
        return self.sent % self._every == 0

    def run(self, job: JobRecord) -> None:
        if not self.lost():
            super().run(job)

    def start(self, job_id: str, stages: Any, *, priority: int = CONTINUE) -> None:
        if not self.lost():
            super().start(job_id, stages, priority=priority)

    def sweep(self, account: str) -> None:
        if not self.lost():
            super().sweep(account)


@pytest.mark.parametrize("every", [2, 3])
def test_of_every_few_messages_one_is_lost(lane: Lane, every: int) -> None:
    request = lane.start()
    post = Lossy(every)
    driver = Driver(lane.container, post=post)
    with FineTuneQueue(lane.settings, messenger=post) as queue:  # type: ignore[arg-type]
        job_id = queue.submit(request).id

    job = driver.until_ended(job_id, seconds=SECONDS)

    assert post.sent >= every
    assert list(lane.check(job)) == []


def test_each_message_is_delivered_twice_at_once_and_all_again_in_reverse(lane: Lane) -> None:
    request = lane.start()
    post = Post()
    driver, other = (Driver(lane.container, post=post, name=name) for name in ("one", "another"))
    with FineTuneQueue(lane.settings, messenger=post) as queue, ThreadPoolExecutor(2) as pool:  # type: ignore[arg-type]
        job_id = queue.submit(request).id
        delivered: list[Message] = []

        def ended() -> bool:
            while post.messages:
                message = post.messages.pop(0)
                for each in in_single_steps(message):
                    delivered.append(each)
                    assert len(list(pool.map(lambda worker: worker.deliver(each), (driver, other)))) == 2  # noqa: B023
            driver.dispatcher.step()
            return lane.container.jobs.get(job_id).state.terminal

        until(ended, seconds=SECONDS)
        job = lane.container.jobs.get(job_id)
        assert {each.stages for each in delivered} >= {(stage,) for stage in Stage if stage is not Stage.POLL}
        for message in [each for each in reversed(delivered) for _ in range(3)]:
            driver.deliver(message)

    assert post.messages == []
    assert job.state is JobState.SUCCEEDED
    assert lane.container.jobs.get(job_id) == job
    assert list(lane.check(job)) == []


def in_single_steps(message: Message) -> list[Message]:
    """Return a message for each stage of a chain, as the broker has them one after the other."""
    return [Message(message.subject, (stage,)) for stage in message.stages] or [message]
