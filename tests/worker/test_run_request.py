"""A message of ``finetune.run`` in Celery's hands: what Celery would do with it, and this does not."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.worker import state
from kombu.message import Message
from kombu.serialization import dumps

from finetune_queue.contract import new_job_id
from finetune_queue.messaging import REPLAYED, RUN
from finetune_worker.run_request import RunRequest
from support.samples import sample


def run(request: Any) -> None:
    """Stand for the task."""


class Hand:
    """A message as a worker has it in hand."""

    def __init__(self, **headers: Any) -> None:
        app = Celery("test", set_as_current=False)
        app.task(name=RUN, shared=False, acks_late=True)(run)
        content_type, encoding, body = dumps([[sample()], {}, {}], "json")
        message: Any = Message(
            body=body,
            content_type=content_type,
            content_encoding=encoding,
            headers={"id": new_job_id(), "task": RUN, **headers},
            delivery_info={},
            accept={"application/json"},
        )
        self.acknowledged = False
        self.request: Any = RunRequest(message, app=app, task=app.tasks[RUN], on_ack=self._ack)

    def _ack(self, *_: Any) -> None:
        self.acknowledged = True


@pytest.mark.parametrize(("headers", "told"), [({}, True), ({REPLAYED: True}, False)])
def test_one_that_was_revoked_comes_to_the_task(headers: dict[str, Any], *, told: bool) -> None:
    hand = Hand(**headers)
    state.revoked.add(hand.request.id)
    assert not hand.request.revoked()
    assert hand.request.request_dict["revoked"] is told
    assert not hand.acknowledged


def test_one_that_is_running_is_not_terminated() -> None:
    hand = Hand()
    hand.request.time_start = 1.0
    hand.request.terminate(pool=None, signal="TERM")
    assert not hand.acknowledged


def test_one_for_later_is_not_kept_in_memory_until_then() -> None:
    eta = datetime.now(UTC) + timedelta(hours=1)
    hand = Hand(eta=eta.isoformat())
    assert hand.request.eta is None
    assert hand.request.request_dict["eta"] == eta
