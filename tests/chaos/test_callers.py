"""Callers: they tell of an answer that was wrong, and of no other."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_queue.contract import derived_job_id
from finetune_queue.settings import Settings

FIELDS = {"name": "face-1", "account": "default", "instance_prompt": "photo of 1MAN", "trigger_word": "1MAN"}


@pytest.fixture
def order(chaos: SimpleNamespace) -> Any:
    return chaos.script.Order(0.0, "order-1", "raw", "public", FIELDS)


@pytest.fixture
def callers(chaos: SimpleNamespace, redis_url: str, order: Any) -> Iterator[Any]:
    """Callers of a queue without workers."""
    ground = SimpleNamespace(settings=Settings(finetune_redis_url=redis_url), gateway_url="http://127.0.0.1:9")
    outside = SimpleNamespace(url=lambda path: f"https://example.com{path}")
    scene = SimpleNamespace(ground=ground, outside=outside, staged="file:///nowhere.zip")
    made = chaos.callers.Callers(chaos.script.Script(1, 10.0, (order,), ()), scene)
    yield made
    made.close()


def test_a_key_whose_job_is_still_a_message_is_not_reused(callers: Any, order: Any) -> None:
    job_id = derived_job_id(order.account, order.key)
    callers.promised[job_id] = order
    reuse = callers.acts["caller reuses a key"]
    assert not reuse({"pick": 0})
    assert list(callers.queue.list()) == []

    assert callers.acts["caller submits again"]({"pick": 0, "way": "sdk"})
    assert reuse({"pick": 0})
    assert [job.id for job in callers.queue.list()] == [job_id]
    assert callers.wrong == []


def test_a_request_that_nobody_takes_is_told_of(callers: Any, chaos: SimpleNamespace, order: Any) -> None:
    callers._orders = [chaos.script.Order(0.0, "order-1", "http", "public", FIELDS)]  # to a gateway that is not there
    callers.start()
    assert not callers.finish(0.2)
    assert callers.wrong == ["1 of 1 requests could not be submitted"]
