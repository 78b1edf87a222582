"""A message in Celery's hands: what Celery would do with it, or show of it, and this does not."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.utils.imports import symbol_by_name
from celery.worker import state
from kombu.message import Message
from kombu.serialization import dumps

from finetune_queue.contract import Stage, new_job_id
from finetune_queue.messaging import ACCESS, PRESIGN, REPLAYED, RUN, SWEEP, stage_task
from finetune_queue.settings import Settings
from finetune_worker.run_request import RunRequest
from finetune_worker.runtime import Runtime
from finetune_worker.tasks import register
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


JOB_ID = "01a22ff2-6599-71f7-b60d-6f33c1eb191b"  # the same in all of the processes that run the tests


@pytest.mark.parametrize(
    ("task", "args", "shown"),
    [
        *((task, [sample()], "(a request)") for task in (RUN, PRESIGN, SWEEP, ACCESS, *map(stage_task, Stage))),
        *((task, [JOB_ID], f"('{JOB_ID}',)") for task in (RUN, PRESIGN, ACCESS, *map(stage_task, Stage))),
        (SWEEP, ["default"], "('default',)"),
        (SWEEP, ["https://example.com/faces.zip?X-Amz-Signature=feed"], "(a request)"),
    ],
)
def test_celery_shows_a_name_of_ours_and_no_request(task: str, args: list[Any], shown: str) -> None:
    """Whichever task a raw client sent it to."""
    app = Celery("test", set_as_current=False)
    register(app, Runtime(Settings(), app))
    content_type, encoding, body = dumps([args, {}, {}], "json")
    message: Any = Message(
        body=body,
        content_type=content_type,
        content_encoding=encoding,
        headers={"id": new_job_id(), "task": task, "argsrepr": repr(args)},
        delivery_info={},
        accept={"application/json"},
    )
    made_by: Any = symbol_by_name(app.tasks[task].Request)
    request = made_by(message, app=app, task=app.tasks[task])
    assert (request.argsrepr, request.info()["args"], request.kwargsrepr) == (shown, shown, "{}")
