"""The way in: a request is checked, its dataset staged, its job registered, and only then its message sent."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from finetune_queue import tracing
from finetune_queue.contract import (
    FineTuneRequest,
    JobRecord,
    RequestError,
    derived_job_id,
    new_job_id,
    parse_request,
)
from finetune_queue.contract.dataset_url import is_url, missing_part
from finetune_queue.errors import (
    FineTuneQueueError,
    InvalidArgumentError,
    InvalidRequestError,
    QueueUnavailableError,
    StagingUnavailableError,
    UnknownJobError,
)
from finetune_queue.messaging import RUN, Messenger, producer_app
from finetune_queue.plain_words import encodable
from finetune_queue.sdk.translation import translated, translation
from finetune_queue.settings import Settings
from finetune_queue.store import JobStore

GROUP = 500
"""How many requests are registered in one round trip. More gain nothing and hold up the server's other clients."""

LONGEST_GATHERING = 1.0
"""Seconds after which the next request ends a group that is still smaller, so that a steady trickle does not wait for
whole groups."""

STAGED = 1000
"""For how many local datasets of a batch the URL is remembered, the latest ones: memory must not grow with the
batch."""

LONGEST_BATCH_NAME = 190
"""Characters: with a colon and a digest it is an idempotency key, which has 255 at most."""

SENT = f"send {RUN}"
"""The span of a request that is put on the queue."""

_OUT_OF_REACH = (QueueUnavailableError, StagingUnavailableError)

Raw = FineTuneRequest | Mapping[str, Any]
Taken = tuple[JobRecord, bool] | FineTuneQueueError
"""What became of a request: its job and whether that is new, or why there is none."""


class Submitter:
    """Puts requests on the queue. Safe in threads."""

    def __init__(self, settings: Settings, jobs: JobStore, messenger: Messenger | None) -> None:
        """Without a ``messenger`` one is made for the first message, as that imports Celery."""
        self._settings = settings
        self._jobs = jobs
        self._messenger = messenger
        self._making = threading.Lock()

    @tracing.span(SENT, kind="producer")
    def submit(self, raw: Raw, *, idempotency_key: str | None) -> tuple[JobRecord, bool]:
        """Put a request on the queue, see :meth:`FineTuneQueue.submit`; returns its job and whether that is new."""
        request = _checked(raw)
        if idempotency_key is not None:
            if request.idempotency_key not in (None, idempotency_key):  # a tuple: the key may be of any type yet
                raise InvalidRequestError(["idempotency_key: the request has another one than the call"])
            # Checked as a field of the request: a job with a key that no request may have could never be read again.
            request = _checked({**request.model_dump(), "idempotency_key": idempotency_key})
        self._check_deadline(request)
        request = _staged(request, self._stage)
        record, new = self._jobs.register(_job_id(request), request, delay=self._settings.finetune_handover)
        tracing.tell({tracing.JOB: record.id, tracing.ACCOUNT: record.account, "finetune.job.new": new})
        if new:
            self._messages().run(record)
        return record, new

    def submit_many(self, raws: Iterable[Raw], *, batch: str | None) -> Iterator[Taken]:
        """Put requests on the queue, a group at a time, see :meth:`FineTuneQueue.submit_many`."""
        if batch is not None and not is_batch_name(batch):
            raise InvalidRequestError([f"batch: a batch's name is a string of 1 to {LONGEST_BATCH_NAME} characters"])
        try:
            each_raw = iter(raws)
        except TypeError:
            message = f"requests: should be several, as in a list, not of the type {type(raws).__name__}"
            raise InvalidArgumentError(message) from None
        stage = lru_cache(maxsize=STAGED)(self._stage)
        for group in _groups(self._ready(raw, batch, stage) for raw in each_raw):
            outcomes = self._submit_group(group)
            yield from outcomes
            for outcome in outcomes:
                if isinstance(outcome, _OUT_OF_REACH):
                    raise outcome

    def _submit_group(self, group: list[FineTuneRequest | FineTuneQueueError]) -> list[Taken]:
        wanted = [(_job_id(each), each) for each in group if isinstance(each, FineTuneRequest)]
        # A trace for each: a batch may have any number of jobs.
        with tracing.each_in_its_own(SENT, (job_id for job_id, _ in wanted)) as traces:
            found = self._jobs.register_many(wanted, delay=self._settings.finetune_handover, traces=traces)
        registered = iter(found)
        outcomes: list[Taken] = []
        for each in group:
            if isinstance(each, FineTuneQueueError):
                outcomes.append(each)
                continue
            outcome = next(registered)
            outcomes.append(translation(outcome) if isinstance(outcome, Exception) else outcome)
        new = [taken[0] for taken in outcomes if isinstance(taken, tuple) and taken[1]]
        if new:
            self._messages().run_many(new)
        return outcomes

    def _ready(self, raw: Raw, batch: str | None, stage: Callable[[str], str]) -> FineTuneRequest | FineTuneQueueError:
        try:
            request = _keyed(_staged(_checked(raw), stage), batch)
            self._check_deadline(request)
        except FineTuneQueueError as error:
            return error
        return request

    def _check_deadline(self, request: FineTuneRequest) -> None:
        """Refuse a request whose deadline has passed, as its job would only fail; but not the repeat of a request that
        came in time, by its idempotency key.

        Raises:
            InvalidRequestError: it has passed, and there is no such job.
        """
        if request.deadline is None or not request.expired(datetime.now(UTC)):
            return
        if request.idempotency_key is not None:
            with suppress(UnknownJobError), translated():
                self._jobs.get(_job_id(request))
                return
        raise InvalidRequestError([f"deadline: {request.deadline.isoformat()} has already passed"])

    def _messages(self) -> Messenger:
        with self._making:
            if self._messenger is None:
                self._messenger = Messenger(producer_app(self._settings))
            return self._messenger

    def _stage(self, path: str) -> str:
        # Imported late: packing needs Pillow, which other producers do not pay for.
        from finetune_queue.staging import stage

        return stage(path, self._settings)


def is_batch_name(batch: object) -> bool:
    """Tell whether it can name a batch, as the beginning of an idempotency key."""
    return isinstance(batch, str) and 0 < len(batch) <= LONGEST_BATCH_NAME and batch == encodable(batch)


def _groups(
    ready: Iterable[FineTuneRequest | FineTuneQueueError],
) -> Iterator[list[FineTuneRequest | FineTuneQueueError]]:
    group: list[FineTuneRequest | FineTuneQueueError] = []
    end = time.monotonic() + LONGEST_GATHERING
    for each in ready:
        group.append(each)
        if len(group) == GROUP or time.monotonic() >= end or isinstance(each, _OUT_OF_REACH):
            yield group
            group = []
            end = time.monotonic() + LONGEST_GATHERING
    if group:
        yield group


def _checked(raw: Raw) -> FineTuneRequest:
    try:
        request = raw if isinstance(raw, FineTuneRequest) else parse_request(_plain(raw))
    except RequestError as error:
        raise InvalidRequestError(error.problems) from None
    if (missing := missing_part(request.dataset)) is not None:
        raise InvalidRequestError([f"dataset: {missing}"])
    return request


def _plain(raw: Any) -> Any:
    return dict(raw) if isinstance(raw, Mapping) else raw


def _keyed(request: FineTuneRequest, batch: str | None) -> FineTuneRequest:
    if batch is None or request.idempotency_key is not None:
        return request
    return request.model_copy(update={"idempotency_key": f"{batch}:{request.digest()}"})


def _staged(request: FineTuneRequest, stage: Callable[[str], str]) -> FineTuneRequest:
    if is_url(request.dataset):
        return request
    return request.model_copy(update={"dataset": stage(request.dataset)})


def _job_id(request: FineTuneRequest) -> str:
    return derived_job_id(request.account, request.idempotency_key) if request.idempotency_key else new_job_id()
