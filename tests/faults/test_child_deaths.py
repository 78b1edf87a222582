"""A pool of child processes: what the death of one over a message costs."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from finetune_queue.contract import JobState
from finetune_queue.local.stack import LocalStack
from finetune_queue.messaging import QUEUE, RUN, producer_app
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.store import keys
from finetune_worker.run_request import MOST_DEATHS
from support.hard_times import SECONDS
from support.other_stack import OtherStack
from support.samples import sample
from support.until import until

pytestmark = pytest.mark.long

DATASET = "https://example.com/faces.zip"

SETTINGS = {"FINETUNE_LOG_FORMAT": "json", "FINETUNE_HANDOVER": "2"}


class DeadlyStack(OtherStack):
    """One whose worker has child processes that die over some requests."""

    application = "support.deadly_worker"
    pool = "processes"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    with DeadlyStack(tmp_path_factory.mktemp("deadly"), threads=1, settings=SETTINGS) as running:
        yield running


@pytest.fixture
def queue(stack: LocalStack) -> Iterator[FineTuneQueue]:
    with FineTuneQueue(stack.settings) as found:
        yield found


@pytest.fixture
def kept(stack: LocalStack) -> Iterator[Any]:
    with redis.Redis.from_url(stack.valkey.url, decode_responses=True) as client:
        yield client


def send(stack: LocalStack, name: str, deaths: int) -> str:
    request = sample(name=name, dataset=DATASET, labels={"deaths": str(deaths)})
    with producer_app(stack.settings) as app:
        return str(app.send_task(RUN, [request], queue=QUEUE).id)


def is_there(queue: FineTuneQueue, job_id: str) -> bool:
    return any(job.id == job_id for job in queue.list())


def test_a_raw_request_survives_the_process_that_read_it(stack: LocalStack, queue: FineTuneQueue, kept: Any) -> None:
    sent = send(stack, "once", MOST_DEATHS - 1)
    until(lambda: is_there(queue, sent), seconds=SECONDS)
    assert kept.xlen(keys.dead_letters()) == 0


def test_a_raw_request_that_ends_whoever_reads_it_is_set_aside(
    stack: LocalStack, queue: FineTuneQueue, kept: Any
) -> None:
    sent = send(stack, "always", 1000)
    until(lambda: kept.xlen(keys.dead_letters()) > 0, seconds=SECONDS)
    [(_, letter)] = kept.xrange(keys.dead_letters())
    assert letter["message_id"] == sent
    assert f"{MOST_DEATHS} processes of a worker died" in letter["problems"]
    until(lambda: kept.hlen("{finetune}:unacked") == 0, seconds=SECONDS)

    after = send(stack, "harmless", 0)
    until(lambda: is_there(queue, after), seconds=SECONDS)
    assert (stack.folder / "deaths-always").read_text() == str(MOST_DEATHS)


def test_a_registered_job_whose_message_ends_its_reader_goes_on_without_it(
    stack: LocalStack, queue: FineTuneQueue
) -> None:
    job = queue.submit(sample(name="registered", dataset=DATASET, labels={"deaths": "1000"}))
    until(lambda: job.refresh().state is not JobState.ACCEPTED, seconds=SECONDS)
    assert (stack.folder / "deaths-registered").read_text() == "1"
