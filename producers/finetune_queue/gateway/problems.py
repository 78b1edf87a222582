"""Errors as problem details (RFC 9457): one table of codes, and what each exception of the layers below means."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from finetune_queue.contract.request import ACCOUNT_RULE, LABEL_KEY_RULE
from finetune_queue.errors import (
    IdempotencyConflictError,
    InvalidRequestError,
    NotPossibleError,
    QueueUnavailableError,
    StagingUnavailableError,
    UnknownJobError,
    UnreadableJobError,
)
from finetune_queue.plain_words import encodable, in_plain_words
from finetune_queue.store import JobNotFoundError, RedisError

MEDIA_TYPE = "application/problem+json"

TITLES: Mapping[str, tuple[int, str]] = {
    "bad-request": (400, "The request cannot be read"),
    "unauthorized": (401, "A valid bearer token is needed"),
    "foreign-origin": (403, "This gateway is for this machine only"),
    "read-only": (403, "This client may only read"),
    "not-found": (404, "There is nothing here"),
    "job-not-found": (404, "There is no such job"),
    "method-not-allowed": (405, "The method is not allowed here"),
    "request-timeout": (408, "The request's body did not arrive in time"),
    "not-possible": (409, "The job's state does not allow this"),
    "job-unreadable": (409, "Only another version of the service can read the job"),
    "too-large": (413, "The request's body is too large"),
    "unsupported-media-type": (415, "The request's body is of the wrong kind"),
    "invalid-request": (422, "The request is not valid"),
    "idempotency-keys-differ": (422, "The header and the body have different idempotency keys"),
    "idempotency-conflict": (409, "The idempotency key was used with another request"),
    "rate-limited": (429, "Too many requests"),
    "internal-error": (500, "The gateway failed internally"),
    "queue-unavailable": (503, "The queue cannot be used now"),
    "staging-unavailable": (503, "The staging store is out of reach"),
    "busy": (503, "The gateway is busy"),
}
"""Every code, with its HTTP status and title."""

_BY_STATUS = {401: "unauthorized", 404: "not-found", 405: "method-not-allowed", 413: "too-large"}

RETRY_AFTER = 2
"""Seconds after which a client may try again when something is out of reach."""


class FieldProblem(BaseModel):
    """One thing that is wrong: where (a JSON pointer into the body, or the parameter's name) and what."""

    where: str
    detail: str


class Problem(BaseModel):
    """Problem details as RFC 9457 has them; ``code`` is the stable word for programs."""

    type: str = Field(examples=["urn:finetune-queue:problem:job-not-found"])
    title: str
    status: int
    detail: str
    code: str
    instance: str | None = Field(default=None, description="The request's id, which is also in the gateway's log.")
    errors: list[FieldProblem] | None = None


class ProblemError(HTTPException):
    """Ends a request with a problem."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        errors: list[FieldProblem] | None = None,
    ) -> None:
        """``code`` is one of :data:`TITLES`."""
        super().__init__(TITLES[code][0], detail, dict(headers or {}))
        self.code = code
        self.errors = errors


def later(code: str, detail: str, seconds: float = RETRY_AFTER) -> ProblemError:
    """Make the problem of something that may work again after ``seconds``."""
    return ProblemError(code, detail, headers={"Retry-After": str(max(1, math.ceil(seconds)))})


def explain(error: Exception) -> ProblemError | None:
    """Return the problem that an exception means; None for one that nothing expects."""
    text = str(error)
    match error:
        case ProblemError():
            return error
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            code = _BY_STATUS.get(error.status_code, "bad-request")
            return ProblemError(code, _WHERE.get(code, str(error.detail)), headers=error.headers)
        case InvalidRequestError():
            return _listed([_field_problem(line) for line in error.problems])
        case UnknownJobError() | JobNotFoundError():
            return ProblemError("job-not-found", text)
        case UnreadableJobError():
            return ProblemError("job-unreadable", text)
        case NotPossibleError():
            return ProblemError("not-possible", text)
        case IdempotencyConflictError():
            return ProblemError("idempotency-conflict", text)
        case StagingUnavailableError():
            return later("staging-unavailable", text)
        case QueueUnavailableError() | RedisError():
            # What Redis or its client says may name hosts, which is for the log: the edge writes it there.
            message = "The queue's Redis is out of reach, or refuses, as when it is full. Nothing was lost; try again."
            return later("queue-unavailable", message)
        case _:
            return None


_WHERE = {
    "not-found": "No call has this address. /openapi.json describes them all.",
    "method-not-allowed": "This address takes the methods of the header Allow. /openapi.json describes all calls.",
}
"""Where to look, in place of the framework's words, which only say the status again."""

_FORMS = {
    "account": ACCOUNT_RULE,
    "after": "should be `next` of the previous page",
    "cursor": "should be `next` of the previous page",
    "idempotency-key": "should be ASCII characters, 255 at most, without a space at either end",
    "last-event-id": "should be the id of the last event that came",
    "label": f"should be KEY=VALUE, the key of {LABEL_KEY_RULE}",
    "/account": ACCOUNT_RULE,
    "/dataset": "should be a URL: https://example.com/my%20faces.zip, percent-encoded, or s3://bucket/my faces.zip, "
    "the key as it is",
}
"""What a string should look like, in words in place of its pattern, which nobody reads."""

_UNKNOWN = "is unknown"


def internal_error() -> ProblemError:
    """Make the problem of a defect; what it was is in the log, under the request's id."""
    return ProblemError("internal-error", "See the gateway's log for this request's id.")


def respond(error: ProblemError, request_id: str | None) -> Response:
    """Return the response that tells of the problem."""
    status, title = TITLES[error.code]
    body = Problem(
        type=f"urn:finetune-queue:problem:{error.code}",
        title=title,
        status=status,
        detail=error.detail,
        code=error.code,
        instance=None if request_id is None else f"urn:uuid:{request_id}",
        errors=error.errors,
    )
    content = json.dumps(body.model_dump(exclude_none=True)).encode()
    return Response(content, status, media_type=MEDIA_TYPE, headers=error.headers)


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of these problems."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, title = TITLES[code]
        said = found.get(status)
        described = f"{said['description']}, or: {title}" if said else title
        found[status] = {
            "description": described,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    return found


def unknown_parameters(names: Iterable[str]) -> ProblemError:
    """Make the problem of parameters that a call does not have."""
    problems = [FieldProblem(where=encodable(name), detail=_UNKNOWN) for name in names]
    return _listed(problems)


def repeated_parameters(names: Iterable[str]) -> ProblemError:
    """Make the problem of parameters that came more than once, where one value is meant."""
    return _listed([FieldProblem(where=encodable(name), detail="is given more than once") for name in names])


def _listed(problems: list[FieldProblem]) -> ProblemError:
    detail = "; ".join(f"{problem.where}: {problem.detail}" for problem in problems[:5])
    return ProblemError("invalid-request", detail, errors=problems[:50])


def _invalid(error: RequestValidationError) -> ProblemError:
    if isinstance(error.body, bytes) and error.body:  # FastAPI reads a body as JSON that is said to be, and no other
        return ProblemError("unsupported-media-type", "Send JSON, and say so: `Content-Type: application/json`.")
    problems = []
    for found in error.errors():
        source, *path = found["loc"]
        if found["type"] == "json_invalid":
            return ProblemError("bad-request", f"The body is not JSON: {found['ctx']['error']}.")
        if found["type"] == "none_required":  # beside what is wrong with a value that could also be left out
            continue
        where = "/" + "/".join(map(str, path)) if source == "body" else _parameter(path)
        problems.append(FieldProblem(where=encodable(where), detail=_said(found, where)))
    return _listed(problems)


def _parameter(path: list[str | int]) -> str:
    """Name a parameter, and the number of its value if it has several; what else pydantic says there is its own."""
    return ".".join(str(part) for place, part in enumerate(path) if place == 0 or isinstance(part, int))


def _said(found: Mapping[str, Any], where: str) -> str:
    match found["type"]:
        case "string_pattern_mismatch":
            return _FORMS.get(where.partition(".")[0], "does not have the form that the API's description requires")
        case "missing" if where == "/":
            return "should be a JSON object, but is empty"
        case "missing":
            return "is required"
        case "extra_forbidden" if where == "/data_source_path":
            return "is called 'dataset' here"
        case "extra_forbidden":
            return _UNKNOWN
        case "model_attributes_type":
            return "should be a JSON object"
        case _:
            text = in_plain_words(str(found["msg"]))
            return encodable(f"{text[:1].lower()}{text[1:]}")


def _field_problem(line: str) -> FieldProblem:
    """Return a problem of the SDK's, which begins with its field."""
    field, colon, said = line.partition(": ")
    return FieldProblem(where=f"/{field}", detail=said) if colon else FieldProblem(where="/", detail=line)
