"""Arguments that a call cannot mean: each is refused by name, before anything is done."""

import math
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from finetune_queue import FineTuneQueue, FineTuneRequest, InvalidArgumentError, InvalidRequestError
from finetune_queue.contract import JobState
from support.cli import Worker
from support.images import make_dataset_folder
from support.samples import sample

TEXTS = ("name", "instance_prompt", "trigger_word", "base_model", "theme", "account", "idempotency_key")

Call = Callable[[Any], Any]


@pytest.mark.parametrize("word", ["no", "false", "", 0, 1, None])
def test_only_true_and_false_are_true_and_false(queue: FineTuneQueue, worker: Worker, word: Any) -> None:
    job = queue.submit(sample())
    worker.announce()
    record = worker.bring(worker.store.get(job.id), JobState.SUCCEEDED)
    for call in (
        lambda: job.set_public(word),
        lambda: queue.set_public(job.id, word),
        lambda: queue.stop_submits("default", stopped=word),
        lambda: job.resolve(resubmit=word),
        lambda: job.resolve(adopt="ft-1", resubmit=word),
        lambda: job.download(force=word),
    ):
        with pytest.raises(InvalidArgumentError, match=r"^\w+: should be True or False, not of the type") as caught:
            call()
        assert isinstance(caught.value, InvalidRequestError)
    assert worker.store.get(job.id) == record
    assert not worker.accounts.status("default").stopped


ID = "01a213e8-2f10-7d71-8fd6-0e5b4c7a9d21"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda queue: queue.list(labels="a=b"), r'labels: should be a mapping, like {"team": "faces"}, not of the'),
        (lambda queue: queue.list(labels={"a": 1}), r"labels\.a: should be a text, not of the type int"),
        (lambda queue: queue.list(labels={1: "a"}), "labels: a key should be letters, digits"),
        (lambda queue: queue.list(account=1), "account: should be a text"),
        (lambda queue: queue.page(account="team a"), "account: should be letters, digits and"),
        (lambda queue: queue.list(account=""), "account: should be letters, digits and"),
        (lambda queue: queue.list(limit="3"), "limit: should be a whole number, not of the type str"),
        (lambda queue: queue.list(limit=True), "limit: should be a whole number, not of the type bool"),
        (lambda queue: queue.list(limit=-1), "limit: should be 0 or more, not -1"),
        (lambda queue: queue.page(limit=0), "limit: should be 1 or more, not 0"),
        (lambda queue: queue.page(cursor=5), "cursor: should be a text"),
        (lambda queue: queue.page(cursor="5"), "cursor: is not one that a page gave"),
        (lambda queue: queue.events(ID, after="1"), "after: should be a whole number"),
        (lambda queue: queue.redeliver(ID, sink=5), "sink: should be a text"),
        (lambda queue: queue.redeliver(ID, sink="ftp://x"), "sink: is not a known kind of sink"),
        (lambda queue: queue.resolve(ID, adopt=5), "adopt: should be a text"),
        (lambda queue: queue.stop_submits(None), "account: should be a text"),
        (lambda queue: list(queue.submit_many(5)), "requests: should be several, as in a list, not of the type int"),
        (lambda queue: list(queue.submit_many([], batch=5)), "batch: a batch's name is a string"),
        (lambda queue: queue.submit(sample(), idempotency_key=["a"]), "idempotency_key: should be a string"),
    ],
)
def test_an_argument_that_means_nothing_is_named(queue: FineTuneQueue, call: Call, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        call(queue)
    assert list(queue.list()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"timeout": "5"}, "timeout: should be a number of seconds, not of the type str"),
        ({"timeout": timedelta(seconds=1)}, "timeout: should be a number of seconds, not of the type timedelta"),
        ({"timeout": True}, "timeout: should be a number of seconds, not of the type bool"),
        ({"timeout": -1}, "timeout: should be 0 or more seconds, not -1"),
        ({"timeout": math.nan}, "timeout: should be 0 or more seconds, not nan"),
        ({"on_event": "print"}, "on_event: should be a function, not of the type str"),
    ],
)
def test_a_wait_that_means_nothing_does_not_begin(queue: FineTuneQueue, arguments: Any, said: str) -> None:
    job = queue.submit(sample())
    with pytest.raises(InvalidArgumentError, match=said):
        job.wait(**arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"target": 5}, "target: should be a path, not of the type int"),
        ({"target": None}, "target: should be a path, not of the type NoneType"),
        ({"target": b"x"}, "target: should be a path, not of the type bytes"),
        ({"on_progress": "x"}, "on_progress: should be a function, not of the type str"),
    ],
)
def test_a_download_that_means_nothing_does_not_begin(queue: FineTuneQueue, arguments: Any, said: str) -> None:
    job = queue.submit(sample())
    with pytest.raises(InvalidArgumentError, match=said):
        job.download(**arguments)


def test_a_request_made_of_its_fields_is_refused_in_words() -> None:
    make: Any = FineTuneRequest
    with pytest.raises(InvalidRequestError) as caught:
        make(name=1, dataset="https://example.com/faces.zip", trigger_word="1MAN", steps=5)
    assert caught.value.problems[:2] == ["name: should be a string", "instance_prompt: is required"]
    assert caught.value.problems[2].startswith("steps: is not a field of a request")
    assert "pydantic" not in "".join(traceback.format_exception(caught.value))
    assert make(**sample()) == FineTuneRequest.model_validate(sample())


@pytest.mark.parametrize("name", [*TEXTS, "dataset"])
def test_bytes_are_no_text(queue: FineTuneQueue, name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{name}: should be a string"):
        queue.submit(sample(**{name: b"x"}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"labels": {"a": b"x"}}, r"labels\.a: should be a string"),
        ({"labels": {b"a": "x"}}, "labels: a key should be letters"),
        ({"reply_to": [b"list://x"]}, r"reply_to\.0: should be a string"),
        ({"priority": b"5"}, "priority: should be a number"),
    ],
)
def test_nor_are_they_inside(queue: FineTuneQueue, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        queue.submit(sample(**fields))


def test_a_dataset_may_be_a_path(queue: FineTuneQueue, tmp_path: Path) -> None:
    folder = make_dataset_folder(tmp_path / "photos")
    staged = queue.submit(sample(dataset=str(folder))).record.request.dataset
    assert queue.submit(sample(dataset=folder)).record.request.dataset == staged
    make: Any = FineTuneRequest
    [many, made] = queue.submit_many([sample(dataset=folder), make(**sample(dataset=folder))])
    assert [each.job and each.job.record.request.dataset for each in (many, made)] == [staged] * 2
    with pytest.raises(InvalidRequestError, match="dataset: "):
        queue.submit(sample(dataset=tmp_path / "nowhere"))
