"""The callers: submit what the script orders until it is taken, and cancel, retry and repeat at random.

What a caller was promised is written down here: a job whose id it was given has to end.
"""

import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx
from celery import Celery
from kombu.exceptions import OperationalError

from finetune_chaos.ground import LIST, QUEUE, Scene
from finetune_chaos.on_processes import Action
from finetune_chaos.outside import DATASET, REPLY
from finetune_chaos.script import Order, Script, spread
from finetune_queue import FineTuneQueue
from finetune_queue.contract import JobState, derived_job_id
from finetune_queue.errors import (
    IdempotencyConflictError,
    NotPossibleError,
    QueueUnavailableError,
    UnknownJobError,
)
from finetune_queue.messaging import QUEUE as WORK
from finetune_queue.messaging import RUN, producer_app

THREADS = 4

AGAIN = 0.5
"""Seconds before a caller tries again."""


class Callers:
    """Several callers, each a thread. `promised` holds the jobs that were accepted, by their ids."""

    def __init__(self, script: Script, scene: Scene) -> None:
        self.promised: dict[str, Order] = {}
        self.poisoned: list[str] = []
        """Ids of messages that cannot become jobs."""
        self.sent_again: list[str] = []
        """Jobs whose raw request the broker lost: nobody else had it."""
        self.asked_to_cancel: set[str] = set()
        self.asked_to_retry: Counter[str] = Counter()
        self.wrong: list[str] = []
        """Answers that a caller should not have had."""
        self.queue = FineTuneQueue(scene.ground.settings)
        self._script = script
        self._gateway = scene.ground.gateway_url
        self._datasets = {"public": scene.outside.url(DATASET), "staged": scene.staged}
        self._sinks = {
            "list": f"list://{LIST}",
            "celery": f"celery://{QUEUE}/shop.finetuned",
            "web": scene.outside.url(REPLY),
        }
        self._orders = list(reversed(script.orders))
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._giving_up = threading.Event()
        self._threads = [threading.Thread(target=self._work, name=f"caller{n}", daemon=True) for n in range(THREADS)]
        self._app: Celery = producer_app(scene.ground.settings)

    def start(self) -> None:
        """Start submitting."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def finish(self, seconds: float) -> bool:
        """Wait until everything is submitted; False if it is not within ``seconds``, which is then noted as wrong."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        left = len(self._script.orders) - len(self.promised)
        if left:  # nobody was promised these jobs, so nobody else would miss them
            self.wrong.append(f"{left} of {len(self._script.orders)} requests could not be submitted")
        return not left

    def close(self) -> None:
        """Give up what is not done, and close the connections."""
        self._giving_up.set()
        self.queue.close()
        self._app.close()

    # submitting

    def _work(self) -> None:
        with httpx.Client(timeout=15, trust_env=False) as http:
            while True:
                with self._lock:
                    if not self._orders:
                        return
                    order = self._orders.pop()
                self._giving_up.wait(self._began + order.at - time.monotonic())
                self._submit_until_taken(order, http)

    def _submit_until_taken(self, order: Order, http: httpx.Client) -> None:
        request = self._request(order)
        while not self._giving_up.is_set():
            try:
                job_id = self._submit(order, request, http)
            except (QueueUnavailableError, OperationalError, httpx.HTTPError):
                self._giving_up.wait(AGAIN)
                continue
            except Exception as error:  # noqa: BLE001 - no caller is told of an error that nobody documents
                self.wrong.append(f"submitting {order.key} ({order.way}) met {type(error).__name__}: {error}")
                self._giving_up.wait(AGAIN)
                continue
            expected = derived_job_id(order.account, order.key)
            if job_id != expected:
                self.wrong.append(f"{order.key} got job {job_id} in place of {expected}")
            with self._lock:
                self.promised[job_id] = order
            return

    def _submit(self, order: Order, request: dict[str, Any], http: httpx.Client) -> str:
        match order.way:
            case "sdk":
                return self._by_sdk(request)
            case "http":
                return self._by_http(request, http)
            case _:
                return self._by_message(request)

    def _request(self, order: Order) -> dict[str, Any]:
        fields = dict(order.fields)
        fields["reply_to"] = [self._sinks[name] for name in fields.pop("sinks", [])]
        if "deadline_in" in fields:
            seconds = fields.pop("deadline_in")
            fields["deadline"] = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        fields["dataset"] = self._datasets[order.dataset]
        return {**fields, "idempotency_key": order.key}

    def _by_sdk(self, request: dict[str, Any]) -> str:
        return self.queue.submit(request).id

    def _by_http(self, request: dict[str, Any], http: httpx.Client) -> str:
        key = request["idempotency_key"]
        body = {name: value for name, value in request.items() if name != "idempotency_key"}
        reply = http.post(f"{self._gateway}/v1/jobs", json=body, headers={"Idempotency-Key": key})
        reply.raise_for_status()
        return str(reply.json()["job_id"])

    def _by_message(self, request: dict[str, Any]) -> str:
        self._app.send_task(RUN, args=[request], queue=WORK)
        return derived_job_id(request["account"], request["idempotency_key"])

    def send_lost_again(self) -> None:
        """Do what the sender of a raw message does who is told of no job: send it again, with the same key.

        Raises:
            QueueUnavailableError: Redis is out of reach.
        """
        for job_id, order in list(self.promised.items()):
            if order.way == "raw":
                try:
                    self.queue.get(job_id)
                except UnknownJobError:
                    self._by_message(self._request(order))
                    self.sent_again.append(job_id)

    # what callers do besides

    @property
    def acts(self) -> Mapping[str, Action]:
        """What callers do, by kind."""
        acts = {
            "caller cancels": self._cancel,
            "caller retries": self._retry,
            "caller submits again": self._submit_again,
            "caller changes access": self._change_access,
            "operator redelivers": self._redeliver,
            "caller reuses a key": self._reuse_key,
            "message poisoned": self._poison,
        }
        return {kind: partial(self._patiently, kind, act) for kind, act in acts.items()}

    def _patiently(self, kind: str, act: Action, args: dict[str, Any]) -> bool:
        try:
            return act(args)
        except (NotPossibleError, QueueUnavailableError, OperationalError, UnknownJobError, httpx.HTTPError):
            return False  # it ended just now, or Redis is away: another time
        except Exception as error:  # noqa: BLE001 - as above
            self.wrong.append(f"{kind} met {type(error).__name__}: {error}")
            return False

    def _known(self) -> list[str]:
        with self._lock:
            return list(self.promised)

    def _cancel(self, args: dict[str, Any]) -> bool:
        running = [job_id for job_id in self._known()[-40:] if not self.queue.get(job_id).done]
        if not running:
            return False
        job_id = spread(running, args["pick"])
        self.asked_to_cancel.add(job_id)
        self.queue.cancel(job_id)
        return True

    def _retry(self, args: dict[str, Any]) -> bool:
        failed = list(self.queue.list(state=JobState.FAILED, limit=20))
        if not failed:
            return False
        self.retry(spread(failed, args["pick"]).id)
        return True

    def retry(self, job_id: str) -> None:
        """Retry a failed job.

        Raises:
            NotPossibleError, QueueUnavailableError: it was not, or perhaps not.
        """
        self.asked_to_retry[job_id] += 1  # before: its answer may be lost
        self.queue.retry(job_id)

    def _submit_again(self, args: dict[str, Any]) -> bool:
        known = [job_id for job_id in self._known() if "deadline_in" not in self.promised[job_id].fields]
        if not known:
            return False
        job_id = spread(known, args["pick"])
        order = self.promised[job_id]
        with httpx.Client(timeout=5, trust_env=False) as http:
            again = self._submit(replace(order, way=args["way"]), self._request(order), http)
        if again != job_id:
            self.wrong.append(f"submitting {job_id} again gave {again}")
        return True

    def _change_access(self, args: dict[str, Any]) -> bool:
        ended = list(self.queue.list(state=JobState.SUCCEEDED, limit=20))
        if not ended:
            return False
        self.queue.set_public(spread(ended, args["pick"]).id, args["pick"] * 1000 % 1 < 0.7)
        return True

    def _redeliver(self, args: dict[str, Any]) -> bool:
        ended = list(self.queue.list(state=JobState.SUCCEEDED, limit=50))
        if not ended:
            return False
        self.queue.redeliver(spread(ended, args["pick"]).id)
        return True

    def _reuse_key(self, args: dict[str, Any]) -> bool:
        known = self._known()
        if not known:
            return False
        job_id = spread(known, args["pick"])
        self.queue.get(job_id)  # a raw request that is still a message has not used its key yet
        try:
            self.queue.submit({**self._request(self.promised[job_id]), "instance_prompt": "another 1MAN"})
        except IdempotencyConflictError:
            return True
        self.wrong.append(f"the key of {job_id} was taken for another request")
        return True

    def _poison(self, args: dict[str, Any]) -> bool:
        request = {"name": f"poison {args['pick']}", "dataset": 7}
        self.poisoned.append(self._app.send_task(RUN, args=[request], queue=WORK).id)
        return True
