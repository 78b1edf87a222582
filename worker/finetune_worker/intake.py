"""The way in: what ``finetune.run`` and unreadable messages become. Nothing that arrives vanishes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from celery import bootsteps

from finetune_queue.contract import (
    JobRecord,
    JobState,
    RequestError,
    Stage,
    WaitReason,
    derived_job_id,
    new_job_id,
    parse_request,
)
from finetune_queue.contract.ids import is_job_id, message_job_id
from finetune_queue.contract.request import ACCOUNT_NAME
from finetune_queue.messaging import BEGIN
from finetune_queue.store import (
    CallClass,
    Change,
    ConflictError,
    IdempotencyError,
    JobNotFoundError,
    RawMessage,
    RedisError,
    TaskCall,
    UnreadableJobError,
)
from finetune_worker.container import Container
from finetune_worker.envelope import PROBLEM
from finetune_worker.stages.claim import until_deadline
from finetune_worker.stages.conclude import parked
from finetune_worker.stages.runner import left_alone
from finetune_worker.stages.shares import has_share, park_for_transfer

log = structlog.get_logger(__name__)

PUT_BACK_AFTER = 1.0
"""Seconds before a message that could not be written down goes back to the queue."""

_CONTENT_TYPE = "application/json"
"""The only content type that a worker reads (``accept_content``)."""


@dataclass(frozen=True, slots=True)
class Terms:
    """A message's conditions, beside its request: when the job is to start (``eta``), until when it may become a job at
    all (``expires``), and whether it was ``revoked`` before a worker took it."""

    eta: datetime | None = None
    expires: datetime | None = None
    revoked: bool | None = None

    @property
    def wait(self) -> float:
        """The seconds until the job is to start, 0 if that is now."""
        return 0.0 if self.eta is None else max(0.0, (self.eta - datetime.now(UTC)).total_seconds())

    @property
    def refusal(self) -> str | None:
        """Why it is too late for a new job."""
        if self.revoked:
            return "the message was revoked before a worker took it"
        if self.expires is not None and self.expires <= datetime.now(UTC):
            return f"the message expired at {_iso(self.expires)}, before a worker took it"
        if self.expires is not None and self.eta is not None and self.expires <= self.eta:
            return f"the message expires at {_iso(self.expires)}, before the job is to start at {_iso(self.eta)}"
        return None


def _iso(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


AT_ONCE = Terms()


def accept(
    container: Container,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    message_id: str,
    terms: Terms = AT_ONCE,
) -> str:
    """Register the request of a message, or find the job that the message names; then start the job's chain, or let the
    job wait for its time. Returns a sentence on what was done.

    A message that cannot become a job is set aside: it is kept with its body, and a ``rejected`` event says why. So is
    a request that its message's ``terms`` no longer allow to become a job.

    Raises:
        RedisError: the store is out of reach; the message was not acknowledged and comes again.
    """
    try:
        job_id = _register(container, args, kwargs, message_id, terms)
        job = container.jobs.get(job_id)
    except (RequestError, IdempotencyError, JobNotFoundError) as error:
        problems = error.problems if isinstance(error, RequestError) else [str(error)]
        return set_aside(container, args, kwargs, message_id, problems)
    except UnreadableJobError as error:
        return left_alone(error)
    except RedisError:
        raise
    except Exception as error:
        # A failed task loses its message; a defect here must not lose the request.
        log.exception("request_crashed", message_id=message_id)
        problems = [f"the worker met an unexpected {type(error).__name__} when it read the request"]
        return set_aside(container, args, kwargs, message_id, problems)
    structlog.contextvars.bind_contextvars(job_id=job.id, account=job.account)
    if job.state is not JobState.ACCEPTED:
        return f"nothing to do: job {job.id} {job.state.sentence}"
    try:
        later = until_deadline(job, terms.wait)
        return _put_off(container, job, later) if later else _start(container, job)
    except ConflictError:
        return f"nothing to do: job {job.id} was started by another message"


def _start(container: Container, job: JobRecord) -> str:
    """Start the job's chain, or have it wait for its account's share of the transfers."""
    change, reason = Change(delay=container.settings.finetune_handover), None
    if has_share(container, job):
        # Straight into the account's room: a backlog of one account must not fill the queue that others share.
        wait = park_for_transfer(job, CallClass.PREPARE, 0)
        change, reason = parked(job, wait), wait.reason
    container.jobs.transition(job, change, to=JobState.UPLOADING, waiting_for=reason)
    if reason is None:
        container.messenger.start(job.id, Stage.UPLOAD.and_after(), priority=BEGIN)
    log.info("job_started")
    return f"started job {job.id}"


def _put_off(container: Container, job: JobRecord, seconds: float) -> str:
    """Let the dispatcher start the job when it is due."""
    container.jobs.transition(job, Change(delay=seconds), waiting_for=WaitReason.START)
    log.info("job_put_off", seconds=round(seconds))
    return f"parked: job {job.id} is to start in {round(seconds):,} s"


def named_job(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Return the id of the job if that is all the message holds, else None: it may be a raw client's request."""
    match args:
        case [str(job_id)] if is_job_id(job_id) and not kwargs:  # no other string may become part of a key
            return job_id
    return None


def named_account(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Return the name of the account if that is all the message holds, else None."""
    match args:
        case [str(account)] if re.fullmatch(ACCOUNT_NAME, account) and not kwargs:
            return account
    return None


def set_aside(
    container: Container, args: Sequence[Any], kwargs: Mapping[str, Any], message_id: str, problems: list[str]
) -> str:
    """Keep a message that cannot become a job as a dead letter, and tell of it by a ``rejected`` event.

    Raises:
        RedisError: the store is out of reach; nothing was kept.
    """
    message = TaskCall(list(args), dict(kwargs))
    container.rejections.add(message_id or new_job_id(), message, "the message cannot become a job", problems)
    log.warning("message_rejected", message_id=message_id, problems=problems)
    return f"rejected: {'; '.join(problems)}"


def _register(
    container: Container, args: Sequence[Any], kwargs: Mapping[str, Any], message_id: str, terms: Terms
) -> str:
    if (registered := named_job(args, kwargs)) is not None:
        return registered  # by the SDK, before it sent the message
    if len(args) != 1 or kwargs:
        raise RequestError([f"finetune.run takes one argument, the request (got {len(args)} and {len(kwargs)} named)"])
    if isinstance(args[0], str):
        raise RequestError(["finetune.run takes a request, or the id of a registered job (got another string)"])
    request = parse_request(args[0])
    if request.idempotency_key is not None:
        job_id = derived_job_id(request.account, request.idempotency_key)
    else:
        # So that a redelivered message finds the job it made the first time.
        job_id = message_job_id(request.account, message_id)
    if (refusal := terms.refusal) is not None:
        _refuse_new(container, job_id, refusal)
        return job_id
    container.jobs.register(job_id, request, delay=max(terms.wait, container.settings.finetune_handover))
    return job_id


def _refuse_new(container: Container, job_id: str, refusal: str) -> None:
    """Refuse a request that comes too late, unless its message was delivered before, in time, and made the job."""
    try:
        container.jobs.get(job_id)
    except JobNotFoundError:
        raise RequestError([refusal]) from None


class DeadLetterStep(bootsteps.StartStopStep):
    """Keeps messages that Celery itself cannot read or has no task for, where it would log and drop them."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        for name in ("on_decode_error", "on_unknown_message", "on_unknown_task", "on_invalid_task"):
            setattr(parent, name, self._keeping(parent, name, getattr(parent, name)))

    def _keeping(self, parent: Any, name: str, original: Any) -> Any:
        # The message is the first argument of on_decode_error and the second of the others (celery's consumer.py).
        position = 0 if name == "on_decode_error" else 1

        def keep(*args: Any, **kwargs: Any) -> Any:
            message = args[position]
            if not self._set_aside(parent.app.finetune.container, message, name.removeprefix("on_")):
                # Kept in hand, it would take a thread's place until the worker ends.
                parent.timer.call_after(PUT_BACK_AFTER, message.requeue)
                return None
            if PROBLEM in (message.headers or {}):
                return message.ack()  # Celery's line would show the body, whose base64 no redaction can read
            return original(*args, **kwargs)  # logs and acknowledges

        return keep

    @staticmethod
    def _set_aside(container: Container, message: Any, why: str) -> bool:
        headers = dict(message.headers or {})
        problem = headers.pop(PROBLEM, None)
        raw = RawMessage(
            body=message.body.encode() if isinstance(message.body, str) else bytes(message.body),
            headers=headers,
            content_type=str(message.content_type or "application/data"),
            content_encoding=str(message.content_encoding or "binary"),
        )
        message_id = str(headers.get("id") or new_job_id())
        if problem is not None:
            said = f"not a valid Celery message: {problem}"
        elif raw.content_type != _CONTENT_TYPE:
            said = f"its content is {raw.content_type}: only {_CONTENT_TYPE} is read"
        else:
            said = f"Celery could not take the message ({why}, task {headers.get('task') or 'none'})"
        try:
            container.rejections.add(message_id, raw, why, [said])
        except RedisError:
            log.exception("dead_letter_not_kept", message_id=message_id)
            return False
        log.warning("message_rejected", message_id=message_id, problems=[said])
        return True
