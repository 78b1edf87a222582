"""One API call from request to checked reply: the place where its outcome is classified and logged."""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import structlog
from pydantic import BaseModel, SecretStr, ValidationError

from finetune_queue import tracing
from finetune_queue.loopback import is_loopback
from finetune_queue.timed_sockets import Deadline
from finetune_worker.segmind.errors import (
    MalformedReply,
    NotSent,
    OutcomeUnknown,
    Rejected,
    SegmindError,
    Unavailable,
    from_status,
)
from finetune_worker.segmind.replies import (
    MAX_ERROR,
    MAX_JSON,
    BoundedBody,
    TooLargeError,
    error_message,
    parse_json,
    said_status,
    says_error,
)
from finetune_worker.wire.failures import WIRE_ERRORS, explain
from finetune_worker.wire.headers import clock_skew
from finetune_worker.wire.session import open_session
from finetune_worker.wire.urls import require_callable

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class EndedCall:
    """A call that ended. ``result`` is ``ok`` or the error's code, ``skew`` what
    :func:`~finetune_worker.wire.headers.clock_skew` says of Segmind's clock."""

    operation: str
    result: str
    seconds: float
    skew: float | None


OnCall = Callable[[EndedCall], None]
"""Is told of a call that ended."""


def nobody(_ended: EndedCall) -> None:
    """Tell nobody of a call."""


_log = structlog.get_logger(__name__)


class WatchedBody(io.BytesIO):
    """A request body that knows whether it began to leave.

    urllib3 reads it after the connection stands and the headers are written: until then nothing of it can have
    reached the server, whatever exception ended the call, and from then on anything may have.
    """

    begun = False

    def read(self, size: int | None = -1, /) -> bytes:
        self.begun = True
        return super().read(size)


class Endpoint:
    """Where and how calls go, with a session of its own."""

    def __init__(
        self,
        url: str,
        api_key: SecretStr,
        *,
        connect_timeout: float,
        read_timeout: float,
        call_timeout: float,
        on_call: OnCall = nobody,
        pool_size: int = 1,
    ) -> None:
        """Connect to nothing yet. Times in seconds.

        Raises:
            ValueError: the URL or key cannot be used; the message does not hold the key.
        """
        require_callable(url, allow_loopback=True)
        key = api_key.get_secret_value()
        if not (key.isascii() and key.isprintable() and key.strip() == key != ""):
            raise ValueError("The Segmind API key is empty or holds a character that an HTTP header cannot carry.")
        self.session = open_session(pool_size)
        self.base_url = url.rstrip("/")
        self.host = urlsplit(url).hostname or ""
        self.key = key
        self.connect_timeout = connect_timeout
        self.read_timeout = read_timeout
        self.call_timeout = call_timeout
        self.on_call = on_call


class Call:
    """One call. With a ``paid`` body it must not be repeated if its outcome is not known. ``nameless`` says that it
    names no fine-tune, so that a 404 means a wrong address."""

    def __init__(
        self, endpoint: Endpoint, operation: str, *, paid: WatchedBody | None = None, nameless: bool = False
    ) -> None:
        self.deadline = Deadline(endpoint.call_timeout, idle=endpoint.read_timeout)
        self._endpoint = endpoint
        self._operation = operation
        self._paid = paid
        self._nameless = nameless
        self._started = time.monotonic()
        self._sent = ("", "")
        self._status: int | None = None
        self._skew: float | None = None

    def model(self, kind: type[Model], method: str, path: str, **request: Any) -> Model:
        """Call and return the reply as a ``kind``."""
        body = self._body_of(method, path, **request)
        try:
            found = kind.model_validate(parse_json(body))
        except ValidationError as error:
            fields = sorted({".".join(map(str, problem["loc"])) or "reply" for problem in error.errors()})
            said = error_message(body, self._endpoint.key)
            failure = self._unreadable(
                f"wrong or missing: {', '.join(fields)}" + (f"; it said: {said}" if said else "")
            )
        except ValueError:
            failure = self._unreadable("not JSON")
        else:
            self.log(None)
            return found
        raise self._logged(failure)

    def link(self, method: str, path: str, **request: Any) -> str:
        """Call and return the reply, which is a URL in plain text (quoted like JSON is fine too)."""
        body = self._body_of(method, path, **request)
        try:
            found = body.decode().strip().strip('"')
            require_callable(found, allow_loopback=is_loopback(self._endpoint.host))
        except ValueError:
            failure = self._unreadable("not a link that may be followed")
        else:
            self.log(None)
            return found
        raise self._logged(failure)

    def done(self, method: str, path: str, *, confirmed: bool = False, **request: Any) -> None:
        """Call for the status alone. A 2xx is an error all the same if its body says ``error`` or another status, or is
        a web page: that comes from something in front of the API, which has not seen the call.

        With ``confirmed``, a body that is not empty must also say that the call succeeded, as ``200`` does.
        """
        body = self._body_of(method, path, **request)
        said = said_status(body)
        if body.lstrip().startswith(b"<"):
            raise self._logged(self._unreadable("a web page"))
        if says_error(body):
            words = error_message(body, self._endpoint.key) or "error"
            detail = f"Segmind rejected the request. It said: {words}"
            raise self._logged(Rejected("request_rejected", detail=detail, status=self._status))
        if said is not None and not 200 <= said < 300:
            raise self._logged(from_status(said, {}, error_message(body, self._endpoint.key), repeatable=True))
        if confirmed and said is None and body.strip():
            words = error_message(body, self._endpoint.key)
            raise self._logged(self._unreadable("no confirmation" + (f"; it said: {words}" if words else "")))
        self.log(None)

    def open(self, method: str, path: str, **request: Any) -> requests.Response:
        """Send the request and return a successful reply with its body unread; the caller closes it.

        Raises:
            SegmindError: anything else, logged.
        """
        endpoint = self._endpoint
        self._sent = (method, path)
        headers = {"x-api-key": endpoint.key, "Accept": "*/*", **request.pop("headers", {})}
        left = time.time()
        try:
            with self.deadline.running():
                response = endpoint.session.request(
                    method,
                    endpoint.base_url + path,
                    headers=headers,
                    timeout=(endpoint.connect_timeout, endpoint.read_timeout),
                    stream=True,
                    **request,
                )
        except WIRE_ERRORS as error:
            failure = self.broken(error)
        else:
            self._status = response.status_code
            self._skew = clock_skew(response.headers, left, time.time())
            if 200 <= response.status_code < 300:
                return response
            failure = self._refused(response)
        # Raised out here, so that the library's error, which holds the request and so the key, is not chained to it.
        raise self._logged(failure)

    def broken(self, error: Exception) -> SegmindError:
        """Classify what ended the exchange before its reply was whole and readable."""
        if isinstance(error, TooLargeError):
            return self._unreadable("longer than any reply should be")
        if not isinstance(error, WIRE_ERRORS):
            return self._unreadable("not JSON, or cut off")
        failure = explain(error, self._endpoint.host, self.deadline)
        never_left = not (self.deadline.sending if self._paid is None else self._paid.begun)
        if never_left:
            return NotSent(failure.code, detail=f"{failure.sentence} Nothing was sent.", status=self._status)
        if self._paid is not None:
            return OutcomeUnknown(
                failure.code,
                detail=f"{failure.sentence} The submit may still have been accepted.",
                status=self._status,
            )
        if failure.code == "unreadable_reply":
            return MalformedReply("malformed_reply", detail=failure.sentence, status=self._status)
        return Unavailable(failure.code, detail=failure.sentence, status=self._status)

    def log(self, failure: SegmindError | None, **fields: Any) -> None:
        """Write the call's one line, and tell who counts it."""
        seconds, result = time.monotonic() - self._started, failure.code if failure else "ok"
        self._endpoint.on_call(EndedCall(self._operation, result, seconds, self._skew))
        self._trace(seconds, failure)
        _log.info(
            "segmind_call",
            operation=self._operation,
            status=self._status,
            duration_s=round(seconds, 3),
            outcome=result,
            **fields,
        )

    def _trace(self, seconds: float, failure: SegmindError | None) -> None:
        method, path = self._sent
        about: tracing.Attributes = {
            "http.request.method": method,
            "server.address": self._endpoint.host,
            "url.template": path,  # none of the API's paths holds an id
            "finetune.operation": self._operation,
            **({} if self._status is None else {"http.response.status_code": self._status}),
        }
        error = failure.code if failure else None
        tracing.past(f"{method} {path}", seconds, kind="client", attributes=about, error=error)

    def _body_of(self, method: str, path: str, **request: Any) -> bytes:
        response = self.open(method, path, **request)
        try:
            return BoundedBody(response, self.deadline, MAX_JSON).read_all()
        except (*WIRE_ERRORS, TooLargeError) as error:
            failure = self.broken(error)
        finally:
            response.close()
        raise self._logged(failure)

    def _refused(self, response: requests.Response) -> SegmindError:
        try:
            body = BoundedBody(response, self.deadline, MAX_ERROR).read_all()
        except (*WIRE_ERRORS, TooLargeError):
            body = b""  # the status is the answer; only its explanation is lost
        finally:
            response.close()
        message = error_message(body, self._endpoint.key)
        return from_status(
            response.status_code,
            response.headers,
            message,
            repeatable=self._paid is None,
            nameless=self._nameless,
        )

    def _unreadable(self, problem: str) -> SegmindError:
        if self._paid is not None:
            detail = f"Segmind's reply to the submit cannot be read ({problem}): it may have been accepted."
            return OutcomeUnknown("unreadable_reply", detail=detail, status=self._status)
        return MalformedReply(
            "malformed_reply", detail=f"Segmind's reply cannot be read ({problem}).", status=self._status
        )

    def _logged(self, failure: SegmindError) -> SegmindError:
        self.log(failure)
        return failure
