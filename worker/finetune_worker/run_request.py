"""Celery's ``Request``, a message in a worker's hands, changed where it would show, drop or lose a raw client's
request."""

from collections import Counter
from typing import Any

import structlog
from billiard.exceptions import WorkerLostError
from celery.worker import state
from celery.worker.request import Request

from finetune_queue.messaging import REPLAYED
from finetune_queue.store import RedisError
from finetune_worker.intake import named_account, named_job, set_aside

log = structlog.get_logger(__name__)

MOST_DEATHS = 3
"""How many child processes of a worker may die while they read a message before it is set aside. Nothing else counts
how often a message is delivered, so one that ends its reader would come back for ever."""

_deaths: Counter[str] = Counter()
"""How many child processes have died, by the message's id; kept by their parent process."""


class JobRequest(Request):
    """A message about a job. Flower and Celery's log lines see only the job's id, or the words "a request": Celery
    shows arguments to all who ask, and a request holds prompts, perhaps a signed URL."""

    named = staticmethod(named_job)
    """Reads the name that may be shown."""

    def __init__(self: Any, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        name = self.named(self._args, {})
        self._argsrepr = self._request_dict["argsrepr"] = "(a request)" if name is None else f"('{name}',)"
        self._kwargsrepr = self._request_dict["kwargsrepr"] = "{}"

    def info(self, safe: bool = False) -> Any:  # noqa: ARG002, FBT001, FBT002 - Celery's signature
        """Return what ``celery inspect`` shows of it, without the arguments themselves."""
        return super().info(safe=True)


class SweepRequest(JobRequest):
    """A message of ``finetune.sweep``, of which the account's name may be shown."""

    named = staticmethod(named_account)


class RunRequest(JobRequest):
    """A message of ``finetune.run``."""

    def __init__(self: Any, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        self._request_dict["expires"] = self._expires  # parsed by Celery, for the task
        # With an eta Celery would keep the message in memory, where nobody sees it; the task makes it a job that waits.
        self._request_dict["eta"], self._eta = self._eta, None

    def maybe_expire(self) -> None:
        """Let an expired request live: Celery would drop it, the task sets it aside."""

    def revoked(self: Any) -> bool:
        """Let a revoked request live, for the same reason, and tell the task that it was revoked. A dead letter that is
        replayed keeps its id: it may have been revoked before it was set aside, but is wanted now."""
        self._request_dict["revoked"] = self.id in state.revoked and not self._request_dict.get(REPLAYED)
        return False

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Do nothing: the task takes milliseconds, and Celery would acknowledge a message that may have to be put
        back."""

    def on_failure(self: Any, exc_info: Any, *args: Any, **options: Any) -> None:
        """Do what Celery does, which puts the message back if the child process that read it died; but not for ever."""
        error = exc_info.exception
        lost = isinstance(getattr(error, "exc", error), (WorkerLostError, SystemExit, KeyboardInterrupt))
        if lost and not self._already_cancelled:
            self._count_death()
        super().on_failure(exc_info, *args, **options)

    def _count_death(self: Any) -> None:
        if named_job(self._args, {}) is not None:
            self.acknowledge()  # its job's deadline starts it
            return
        _deaths[self.id] += 1
        if _deaths[self.id] < MOST_DEATHS:
            log.warning("request_put_back", message_id=self.id, error="the process that read it died")
            return
        try:
            problem = f"{MOST_DEATHS} processes of a worker died while they read the request"
            set_aside(self.app.finetune.container, self._args, self._kwargs, self.id, [problem])
        except RedisError as error:
            log.warning("request_put_back", message_id=self.id, error=str(error))
            return
        del _deaths[self.id]
        self.acknowledge()
