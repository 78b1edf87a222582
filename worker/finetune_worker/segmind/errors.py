"""What can go wrong in a call to Segmind, classified once, by what the caller may do next.

    SegmindError
    ├── NotSent         nothing of the call reached Segmind: repeat it later, also a submit
    ├── Rejected        a clear no: repeating it changes nothing
    ├── RateLimited     429: a no for now; wait `retry_after`, also with a submit
    ├── Unavailable     a call that may be repeated had no good answer: repeat it later
    ├── OutcomeUnknown  a submit may have been accepted: look for it in the list, never repeat it
    └── MalformedReply  a call that may be repeated had an answer that cannot be read

What matters for money is the line between NotSent, Rejected and RateLimited on one side (a submit started no
training) and OutcomeUnknown on the other (it may have).
"""

from collections.abc import Mapping
from typing import ClassVar

from finetune_worker.wire.failures import TIMED_OUT
from finetune_worker.wire.headers import retry_after


class SegmindError(Exception):
    """A call that did not give what was asked. No attribute holds a key or the query of a URL.

    Args:
        code: Stable, snake_case, for programs.
        detail: A sentence for people: what happened and, where it is not to wait, what to do.
        status: The HTTP status, if there was a reply.
        retry_after: Seconds that the server asked to wait.
    """

    retryable: ClassVar[bool] = False

    def __init__(self, code: str, *, detail: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.status = status
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.detail} [{self.code}]"

    @property
    def under_way(self) -> bool:
        """Whether the call was given up and may still reach Segmind: it may lie in a buffer of a server that hangs."""
        return self.code in TIMED_OUT and not isinstance(self, NotSent)


class NotSent(SegmindError):
    """The name, connection or TLS handshake failed: Segmind cannot have seen the call."""

    retryable = True


class Rejected(SegmindError):
    """Segmind said no and will say it again."""


class RateLimited(SegmindError):
    """429: the account has used its calls; this one did nothing."""

    retryable = True


class Unavailable(SegmindError):
    """A repeatable call timed out, broke or met a server error."""

    retryable = True


class OutcomeUnknown(SegmindError):
    """A submit left and its fate is not known. Never retried: to be reconciled with the list."""


class MalformedReply(SegmindError):
    """A repeatable call was answered with something that is not the documented reply."""

    retryable = True


_WRONG_ADDRESS = ("wrong_address", "There is another API at this address: check SEGMIND_BASE_URL.")
_NO_CREDITS = ("credits_exhausted", "The Segmind account has no credits left: add credits, then retry.")

# A clear no for every operation. To a submit, only these statuses prove that no training was started.
_CLEAR = {
    400: ("request_rejected", "Segmind rejected the request: correct it before sending it again."),
    401: (
        "api_key_rejected",
        "Segmind does not know the API key: check SEGMIND_API_KEY, or the account's in SEGMIND_ACCOUNTS.",
    ),
    402: _NO_CREDITS,
    403: ("forbidden", "The API key may not do this: check the key, the account's plan and who owns the fine-tune."),
    404: ("not_found", "Segmind does not know the fine-tune or the address: check the id and SEGMIND_BASE_URL."),
    405: _WRONG_ADDRESS,
    # Segmind's word for it. What HTTP means by 406 (RFC 9110) cannot be: every call accepts any kind of reply.
    406: _NO_CREDITS,
    413: ("request_too_large", "The request is larger than Segmind accepts."),
    415: ("request_rejected", "Segmind does not read this kind of request: check SEGMIND_BASE_URL."),
    422: ("request_rejected", "Segmind rejected a value of the request: correct it before sending it again."),
}
OF_THE_ACCOUNT = frozenset({"api_key_rejected", "credits_exhausted", "forbidden", "wrong_address", "redirected"})
"""The codes of a refusal that any other call of the account would meet, too."""

# Not a no: the server gave up waiting, or will not take the call now (RFC 9110, 8470).
_LATER = {408, 421, 425}


def from_status(
    status: int, headers: Mapping[str, str], message: str, *, repeatable: bool, nameless: bool = False
) -> SegmindError:
    """Classify a reply that is not a success. ``message`` is the provider's own words, already safe to show.
    ``repeatable`` says that the call is no submit, ``nameless`` that it names no fine-tune."""
    said = f" It said: {message}" if message else ""
    wait = retry_after(headers)
    if status == 429:
        detail = f"Segmind's rate limit for the account is reached.{said}"
        return RateLimited("rate_limited", detail=detail, status=status, retry_after=wait)
    if status in _CLEAR:
        code, sentence = _WRONG_ADDRESS if status == 404 and nameless else _CLEAR[status]
        return Rejected(code, detail=sentence + said, status=status)
    if repeatable:
        return _no_answer(status, said, wait)
    code = "server_error" if status >= 500 else "unclear_status"
    detail = f"Segmind answered the submit with status {status}: it may still have been accepted.{said}"
    return OutcomeUnknown(code, detail=detail, status=status, retry_after=wait)


def _no_answer(status: int, said: str, wait: float | None) -> SegmindError:
    """Classify a status that is neither a success nor a clear no, in reply to a call that may be repeated."""
    if status >= 500 or status in _LATER:
        detail = f"Segmind could not answer now (status {status}).{said}"
        return Unavailable("server_error", detail=detail, status=status, retry_after=wait)
    if 300 <= status < 400:
        detail = "Segmind answered with a redirect, which is not followed with an API key: check SEGMIND_BASE_URL."
        return Rejected("redirected", detail=detail, status=status)
    if 400 <= status < 500:
        detail = f"Segmind rejected the call with status {status}.{said}"
        return Rejected("request_rejected", detail=detail, status=status)
    detail = f"Segmind answered with status {status}, which is unexpected.{said}"
    return MalformedReply("malformed_reply", detail=detail, status=status)
