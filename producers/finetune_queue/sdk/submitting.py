"""The way in: a request is checked, its dataset staged, its job registered, and only then its message sent."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from finetune_queue.contract import (
    FineTuneRequest,
    JobRecord,
    RequestError,
    derived_job_id,
    new_job_id,
    parse_request,
)
from finetune_queue.errors import InvalidRequestError
from finetune_queue.messaging import Messenger, producer_app
from finetune_queue.settings import Settings
from finetune_queue.store import JobStore

_URL_SCHEMES = frozenset({"https", "http", "file", "s3", "gs", "az"})


class Submitter:
    """Puts requests on the queue. Safe in threads."""

    def __init__(self, settings: Settings, jobs: JobStore) -> None:
        self._settings = settings
        self._jobs = jobs
        self._messenger: Messenger | None = None
        self._making = threading.Lock()

    def submit(self, raw: FineTuneRequest | Mapping[str, Any], *, idempotency_key: str | None) -> JobRecord:
        """Put a request on the queue, see :meth:`FineTuneQueue.submit`."""
        request = self._staged(_checked(raw, idempotency_key))
        record, new = self._jobs.register(_job_id(request), request, delay=self._settings.finetune_handover)
        if new:
            self._messages().run(record.id)
        return record

    def _messages(self) -> Messenger:
        with self._making:
            if self._messenger is None:
                self._messenger = Messenger(producer_app(self._settings))
            return self._messenger

    def _staged(self, request: FineTuneRequest) -> FineTuneRequest:
        if urlsplit(request.dataset).scheme in _URL_SCHEMES:
            return request
        # Imported late: packing needs Pillow, which other producers do not pay for.
        from finetune_queue.staging import stage

        return request.model_copy(update={"dataset": stage(Path(request.dataset), self._settings)})


def _checked(raw: FineTuneRequest | Mapping[str, Any], idempotency_key: str | None) -> FineTuneRequest:
    if isinstance(raw, FineTuneRequest):
        request = raw
    else:
        try:
            request = parse_request(dict(raw))
        except RequestError as error:
            raise InvalidRequestError(error.problems) from None
    return request if idempotency_key is None else request.model_copy(update={"idempotency_key": idempotency_key})


def _job_id(request: FineTuneRequest) -> str:
    return derived_job_id(request.account, request.idempotency_key) if request.idempotency_key else new_job_id()
