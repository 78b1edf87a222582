"""The calls to Segmind's API (Fast Flux API, sections 1 to 5; the private link and credits from its other pages).

No call is ever repeated here: each one uses a slot of the account's budget, so repeating is the caller's decision.
"""

import json
from types import TracebackType
from typing import Self

from pydantic import SecretStr

from finetune_worker.segmind.call import Call, Endpoint, OnCall, WatchedBody, nobody
from finetune_worker.segmind.errors import SegmindError
from finetune_worker.segmind.listing import MAX_LIST, FinetuneListing
from finetune_worker.segmind.models import Credits, FinetuneDetails, PresignedUpload, SubmitReply, SubmitRequest
from finetune_worker.segmind.replies import BoundedBody
from finetune_worker.wire.session import one_use_adapter

_KEPT = 10
"""Connections kept open; more are opened when more threads call."""

_SUBMIT = "/finetune/request/submit"


class SegmindClient:
    """One account's access to the API: one pool of connections, shared by a worker's threads.

    Args:
        base_url: Where the API is; https, or anything on loopback.
        api_key: Sent as ``x-api-key`` to that host only.
        connect_timeout: Seconds to open a connection; three times that for all of a host's addresses together.
        read_timeout: Seconds that a connection may be silent.
        call_timeout: Seconds for a whole call with its reply's body.
        on_call: Told of each call when it has ended.

    Raises:
        ValueError: the URL or key cannot be used; the message does not hold the key.
    """

    def __init__(
        self,
        base_url: str,
        api_key: SecretStr,
        *,
        connect_timeout: float = 5.0,
        read_timeout: float = 30.0,
        call_timeout: float = 60.0,
        on_call: OnCall = nobody,
    ) -> None:
        self._endpoint = Endpoint(
            base_url,
            api_key,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            call_timeout=call_timeout,
            on_call=on_call,
            pool_size=_KEPT,
        )
        # A submit has a pool of its own whose connections are never used twice: on a kept one that the server closed
        # meanwhile, the body goes out before the reset comes back, and a harmless event would be an unknown outcome.
        self._endpoint.session.mount(self._endpoint.base_url + _SUBMIT, one_use_adapter())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the kept connections."""
        self._endpoint.session.close()

    def submit(self, request: SubmitRequest) -> SubmitReply:
        """Start a paid training (section 1).

        Raises:
            NotSent, Rejected, RateLimited: no training was started.
            OutcomeUnknown: one may have been started; look for it in the list before anything else.
        """
        body = WatchedBody(json.dumps(request.model_dump(mode="json", exclude_none=True)).encode())
        headers = {"Content-Type": "application/json", "Connection": "close"}
        return Call(self._endpoint, "submit", paid=body).model(SubmitReply, "POST", _SUBMIT, data=body, headers=headers)

    def details(self, finetune_id: str) -> FinetuneDetails:
        """Return one fine-tune (section 2: a GET with a JSON body).

        Raises:
            SegmindError: any leaf but OutcomeUnknown.
        """
        call = Call(self._endpoint, "details")
        return call.model(FinetuneDetails, "GET", "/finetune/request/details", json={"request_id": finetune_id})

    def list_finetunes(self) -> FinetuneListing:
        """Return the account's fine-tunes (section 3), read while they arrive. The call lasts until it is closed.

        Raises:
            SegmindError: any leaf but OutcomeUnknown, here or on iteration.
        """
        call = Call(self._endpoint, "list", nameless=True)
        # The one long reply, of text that repeats itself: worth compressing.
        response = call.open("GET", "/finetune/request/list", headers={"Accept-Encoding": "gzip"})

        def done(listing: FinetuneListing, failure: SegmindError | None) -> None:
            response.close()
            call.log(failure, items=listing.items, skipped=listing.skipped, complete=listing.complete)

        return FinetuneListing(BoundedBody(response, call.deadline, MAX_LIST), classify=call.broken, done=done)

    def presign_upload(self, name: str) -> PresignedUpload:
        """Return a URL to PUT a ZIP to (section 4: a GET with a JSON body), public as Fast Flux reads no other.

        Raises:
            SegmindError: any leaf but OutcomeUnknown.
        """
        call = Call(self._endpoint, "presign_upload", nameless=True)
        body = {"name": name, "extension": ".zip", "public": True}
        return call.model(PresignedUpload, "GET", "/finetune/request/upload/pre-signed-url", json=body)

    def set_access(self, finetune_id: str, *, public: bool) -> None:
        """Make a fine-tuned model public or private (section 5: a multipart form; the reply is ``200``). A reply that
        does not say so is an error: a model taken for private that is public would be the greater harm.

        Raises:
            SegmindError: any leaf but OutcomeUnknown.
        """
        form = {"request_id": (None, finetune_id), "segmind_public": (None, str(public))}
        call = Call(self._endpoint, "set_access")
        call.done("PUT", "/finetune/request/access-update", confirmed=True, files=form)

    def private_link(self, cloud_storage_url: str) -> str:
        """Return a link to weights that are not public (the sibling APIs' operation). Its query is a password.

        Raises:
            SegmindError: any leaf but OutcomeUnknown.
        """
        form = {"cloud_storage_url": cloud_storage_url}
        return Call(self._endpoint, "private_link").link("GET", "/finetune/request/file/download", data=form)

    def credits(self) -> Credits:
        """Return what the account may still spend.

        Raises:
            SegmindError: any leaf but OutcomeUnknown.
        """
        return Call(self._endpoint, "credits", nameless=True).model(Credits, "GET", "/v1/get-user-credits")
