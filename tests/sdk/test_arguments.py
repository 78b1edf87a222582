"""Arguments that a call cannot mean: each is refused by name, before anything is done."""

from collections.abc import Callable
from typing import Any

import pytest

from finetune_queue import FineTuneQueue, FineTuneQueueError, InvalidArgumentError, InvalidRequestError
from finetune_queue.contract import JobState
from finetune_queue.store import connect
from support.cli import Worker
from support.samples import sample

Call = Callable[[Any], Any]


@pytest.mark.parametrize("word", ["no", "false", "", 0, 1, None])
def test_only_true_and_false_are_true_and_false(queue: FineTuneQueue, redis_url: str, word: Any) -> None:
    job = queue.submit(sample())
    with connect(redis_url) as client:
        worker = Worker(client)
        worker.announce()
        record = worker.bring(worker.store.get(job.id), JobState.SUCCEEDED)
        for call in (
            lambda: job.set_public(word),
            lambda: queue.set_public(job.id, word),
            lambda: queue.stop_submits("default", stopped=word),
            lambda: job.resolve(resubmit=word),
            lambda: job.resolve(adopt="ft-1", resubmit=word),
        ):
            with pytest.raises(InvalidArgumentError, match=r"^\w+: should be True or False, not of the type") as caught:
                call()
            assert isinstance(caught.value, InvalidRequestError)
        assert worker.store.get(job.id) == record
        assert not worker.accounts.status("default").stopped


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda queue: queue.resolve("01a213e8-2f10-7d71-8fd6-0e5b4c7a9d21", adopt=5), "adopt: should be a text"),
    ],
)
def test_an_argument_of_another_type_is_named(queue: FineTuneQueue, call: Call, said: str) -> None:
    with pytest.raises(FineTuneQueueError, match=said) as caught:
        call(queue)
    assert isinstance(caught.value, InvalidArgumentError)
