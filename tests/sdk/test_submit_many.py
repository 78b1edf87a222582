"""Many requests at once: in order, in bounded memory, each with an answer of its own, and safe to repeat."""

import itertools
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_queue import (
    FineTuneQueue,
    FineTuneQueueError,
    IdempotencyConflictError,
    InvalidRequestError,
    Job,
    QueueUnavailableError,
    Settings,
    StagingUnavailableError,
    Submission,
)
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.messaging import QUEUE, Messenger, producer_app
from finetune_queue.sdk import submitting
from support.images import make_dataset_folder
from support.samples import sample, sample_request


def job_of(submission: Submission) -> Job:
    assert submission.error is None
    assert submission.job is not None
    return submission.job


def queued(settings: Settings) -> int:
    return Messenger(producer_app(settings)).queued(QUEUE)


@pytest.fixture
def groups_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitting, "GROUP", 3)


@pytest.mark.parametrize("dataset", [" https://example.com/f.zip", "file:/srv/x.zip", "https:/example.com/f.zip"])
def test_what_only_looks_like_a_url_is_the_name_of_no_file(queue: FineTuneQueue, dataset: str) -> None:
    [found] = queue.submit_many([sample(dataset=dataset)])
    assert isinstance(found.error, FineTuneQueueError)
    assert sum(queue.counts().values()) == 0


def test_a_folder_that_is_not_there_is_one_error_without_those_that_it_came_from(queue: FineTuneQueue) -> None:
    with pytest.raises(InvalidRequestError, match="dataset: ") as caught:
        queue.submit(sample(dataset="./nowhere"))
    assert "direct cause" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.usefixtures("groups_of_three")
def test_each_request_gets_its_answer_in_order_whatever_becomes_of_the_others(
    queue: FineTuneQueue, settings: Settings
) -> None:
    known = queue.submit(sample(name="known"), idempotency_key="known")
    requests: list[Any] = [
        sample(name="first"),
        sample(priority=11),
        sample(name="known", idempotency_key="known"),
        sample(name="other", idempotency_key="known"),
        sample_request(name="checked before"),
        ["no", "object"],
        sample(name="last"),
    ]

    found = list(queue.submit_many(requests))

    assert [each.index for each in found] == list(range(7))
    assert [type(each.error) for each in found] == [
        *(type(None), InvalidRequestError, type(None), IdempotencyConflictError),
        *(type(None), InvalidRequestError, type(None)),
    ]
    assert [each.new for each in found] == [True, False, False, False, True, False, True]
    names = [each.job.record.request.name for each in found if each.job is not None]
    assert names == ["first", "known", "checked before", "last"]
    assert job_of(found[2]).id == known.id
    assert "priority" in str(found[1].error)
    assert sum(queue.counts().values()) == queued(settings) == 4  # a message for each job, and no second one


def test_it_takes_no_more_requests_than_it_needs(queue: FineTuneQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitting, "GROUP", 10)
    taken = itertools.count()
    endless = (sample(name=f"job-{next(taken)}") for _ in itertools.count())
    results = queue.submit_many(endless)

    names = [job_of(each).record.request.name for each in itertools.islice(results, 25)]

    assert names == [f"job-{number}" for number in range(25)]
    assert next(taken) == 30


def test_a_request_that_comes_alone_does_not_wait_for_others(
    queue: FineTuneQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "LONGEST_GATHERING", 0.0)
    seen: set[str] = set()

    def slow() -> Iterator[dict[str, Any]]:
        for number in range(3):
            assert len(seen) == number
            yield sample(name=f"job-{number}")

    for each in queue.submit_many(slow()):
        seen.add(job_of(each).id)
    assert len(seen) == 3


def test_a_repeated_batch_submits_only_what_is_missing(queue: FineTuneQueue, settings: Settings) -> None:
    requests = [sample(name="a"), sample(name="a"), sample(name="b"), sample(name="c", idempotency_key="mine")]
    first = list(queue.submit_many(requests, batch="monday"))
    again = list(queue.submit_many([sample(name="new"), *requests], batch="monday"))

    assert [each.new for each in first] == [True, False, True, True]
    assert [each.new for each in again] == [True, False, False, False, False]
    assert [job_of(each).id for each in again[1:]] == [job_of(each).id for each in first]
    assert job_of(again[4]).record.request.idempotency_key == "mine"
    assert queued(settings) == 4
    [other] = queue.submit_many(requests[:1], batch="tuesday")
    assert other.new


def test_without_a_batch_equal_requests_are_jobs_of_their_own(queue: FineTuneQueue) -> None:
    assert [each.new for each in queue.submit_many([sample(), sample()])] == [True, True]


@pytest.mark.parametrize("name", ["", "x" * 191, "\ud800", 5])
def test_a_batch_has_a_name_that_fits(queue: FineTuneQueue, name: Any) -> None:
    with pytest.raises(InvalidRequestError, match="1 to 190 characters"):
        list(queue.submit_many([sample()], batch=name))
    assert job_of(next(queue.submit_many([sample()], batch="x" * 190))).refresh().id


def test_a_folder_is_staged_once_and_a_bad_one_stops_nothing(
    queue: FineTuneQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[str] = []
    original = submitting.Submitter._stage

    def noted(submitter: submitting.Submitter, path: str) -> str:
        packed.append(path)
        return original(submitter, path)

    monkeypatch.setattr(submitting.Submitter, "_stage", noted)
    folder = str(make_dataset_folder(tmp_path / "images"))
    requests = [sample(name=name, dataset=dataset) for name, dataset in (("a", folder), ("b", "gone"), ("c", folder))]

    first, bad, last = queue.submit_many(requests, batch="x")

    assert packed == [folder, "gone"]
    assert job_of(first).record.request.dataset == job_of(last).record.request.dataset
    assert isinstance(bad.error, InvalidRequestError)
    assert "There is no file or folder gone" in str(bad.error)

    (Path(folder) / "one-more.txt").write_text("photo of 1MAN")
    (Path(folder) / "one-more.jpg").write_bytes(next(Path(folder).glob("*.jpg")).read_bytes())
    [changed] = queue.submit_many(requests[:1], batch="x")
    assert changed.new  # other pictures are another request


def test_a_staging_store_that_is_out_of_reach_ends_the_batch_once_what_is_known_was_told(
    queue: FineTuneQueue, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "staging").write_text("a file where the folder should be")
    folder = str(make_dataset_folder(tmp_path / "images"))
    results = queue.submit_many([sample(name="a"), sample(name="b", dataset=folder), sample(name="c")])
    assert job_of(next(results)).record.request.name == "a"
    assert isinstance(next(results).error, StagingUnavailableError)
    with pytest.raises(StagingUnavailableError):
        next(results)
    assert queued(settings) == 1


@pytest.mark.usefixtures("groups_of_three")
def test_a_batch_that_redis_left_is_finished_by_repeating_it(tmp_path: Path) -> None:
    requests = [sample(name=f"job-{number}") for number in range(8)]
    with (
        ValkeyServer(tmp_path / "valkey") as server,
        FineTuneQueue(Settings(finetune_redis_url=server.url)) as queue,
    ):
        results = queue.submit_many(requests, batch="x")
        before = [job_of(next(results)).id for _ in range(3)]
        server.stop()
        assert [type(next(results).error) for _ in range(3)] == [QueueUnavailableError] * 3
        with pytest.raises(QueueUnavailableError, match="out of reach"):
            next(results)
        server.start()

        found = list(queue.submit_many(requests, batch="x"))

        assert [job_of(each).id for each in found[:3]] == before
        assert [each.new for each in found] == [False] * 3 + [True] * 5
        assert sum(queue.counts().values()) == 8


def test_without_the_broker_the_jobs_are_registered_all_the_same(redis_url: str, tmp_path: Path) -> None:
    requests = [sample(), sample()]
    with ValkeyServer(tmp_path / "broker") as broker:
        settings = Settings(finetune_redis_url=redis_url, finetune_broker_url=broker.url)
        with FineTuneQueue(settings) as queue:
            assert [each.new for each in queue.submit_many(requests)] == [True, True]
            broker.stop()
            for _ in range(2):  # with a connection that was open, and without one
                assert [each.new for each in queue.submit_many(requests)] == [True, True]
            broker.start()
            assert [each.new for each in queue.submit_many(requests)] == [True, True]
            assert sum(queue.counts().values()) == 8
            assert queued(settings) == 4
