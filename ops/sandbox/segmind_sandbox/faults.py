"""Faults on demand: what can go wrong, where, and how often.

A fault names an operation and a kind, and fires ``count`` times (by default once) or, with a ``probability``
below 1, at random until it is removed. ``match`` limits it to calls whose path or body contains the text: a job's
name, a file name, an id.

A fault of a body (truncated, corrupted, stall, ignore_range) is used up only by a reply that has the object's bytes:
one that meets a refusal, or another fault's answer, waits for the next call.

Faults that only shape a call (slow, stall, corrupted, ignore_range, partial_list) fire together. Of those that decide
how it is answered the oldest fires, and the others wait for the next call: several make a sequence.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

ApiOp = Literal[
    "submit", "details", "list", "presign", "access", "file_link", "credits",
    "webhook_get", "webhook_add", "webhook_update", "webhook_inactive", "webhook_logs",
]  # fmt: skip
StorageOp = Literal["put", "dataset_get", "dataset_head", "download", "download_head"]
Op = ApiOp | StorageOp | Literal["training", "api"]

API_OPS: frozenset[str] = frozenset(get_args(ApiOp))
STORAGE_OPS: frozenset[str] = frozenset(get_args(StorageOp))
READS = frozenset({"dataset_get", "download"})


class Fault(BaseModel):
    """The fields that every kind has. ``op`` "api" stands for every API operation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    ops: ClassVar[frozenset[str]] = API_OPS | STORAGE_OPS | {"api"}
    decides: ClassVar[bool] = False  # the call's reply; at most one such fault fires in a call

    op: Op
    count: int | None = Field(None, ge=1, description="how often it fires; null: until it is removed")
    probability: float = Field(1.0, gt=0, le=1)
    match: str | None = Field(None, min_length=1, description="only calls whose path or body contains this")

    @model_validator(mode="before")
    @classmethod
    def _once_by_default(cls, data: Any) -> Any:
        if isinstance(data, dict) and "count" not in data and data.get("probability", 1) == 1:
            return {**data, "count": 1}
        return data

    @model_validator(mode="after")
    def _op_fits(self) -> Fault:
        if self.op not in self.ops:
            raise ValueError(f"this kind of fault fits {', '.join(sorted(self.ops))}, not {self.op}")
        return self

    def applies_to(self, op: str, text: str) -> bool:
        """Whether a call of ``op``, whose path and body are ``text``, is meant."""
        return (self.op == op or (self.op == "api" and op in API_OPS)) and (self.match is None or self.match in text)


class HttpError(Fault):
    """An error status; with ``processed`` the call has had its effect all the same."""

    decides: ClassVar[bool] = True
    kind: Literal["http_error"]
    status: int = Field(500, ge=400, le=599)
    body: Literal["error", "empty", "html"] = "error"
    processed: bool = False


class ReplyLost(Fault):
    """The call has its effect, then the connection closes without a reply."""

    decides: ClassVar[bool] = True
    kind: Literal["reply_lost"]


class Reset(Fault):
    """The connection is reset before the call has any effect."""

    decides: ClassVar[bool] = True
    kind: Literal["reset"]


class Slow(Fault):
    """A wait before the call has its effect, or with ``processed`` between the effect and the reply."""

    kind: Literal["slow"]
    seconds: float = Field(gt=0)
    processed: bool = False


class RateLimited(Fault):
    """A 429 although the account's limit is not reached."""

    ops: ClassVar[frozenset[str]] = API_OPS | {"api"}
    decides: ClassVar[bool] = True
    kind: Literal["rate_limited"]
    retry_after: float | None = Field(None, ge=0)


class MalformedJson(Fault):
    """The call has its effect, then its JSON reply is cut in half."""

    ops: ClassVar[frozenset[str]] = API_OPS | {"api"}
    decides: ClassVar[bool] = True
    kind: Literal["malformed_json"]


class Html200(Fault):
    """A page of HTML with status 200, as a proxy in trouble sends; with ``processed`` after the effect."""

    ops: ClassVar[frozenset[str]] = API_OPS | {"api"}
    decides: ClassVar[bool] = True
    kind: Literal["html_200"]
    processed: bool = False


class PartialList(Fault):
    """The list leaves out jobs, each with the probability ``missing``."""

    ops: ClassVar[frozenset[str]] = frozenset({"list"})
    kind: Literal["partial_list"]
    missing: float = Field(0.5, gt=0, le=1)


class SlowDown(Fault):
    """503 SlowDown with S3's XML body."""

    ops: ClassVar[frozenset[str]] = STORAGE_OPS
    decides: ClassVar[bool] = True
    kind: Literal["slow_down"]


class Truncated(Fault):
    """The body ends after ``after_bytes`` of the bytes asked for, and the connection closes."""

    ops: ClassVar[frozenset[str]] = READS
    decides: ClassVar[bool] = True
    kind: Literal["truncated"]
    after_bytes: int = Field(1000, ge=0)


class Corrupted(Fault):
    """One byte is changed, ``at_byte`` from the first byte of the reply; length and hashes say the true ones."""

    ops: ClassVar[frozenset[str]] = READS
    kind: Literal["corrupted"]
    at_byte: int = Field(1000, ge=0)


class Stall(Fault):
    """Nothing is sent for ``seconds`` once ``after_bytes`` have been."""

    ops: ClassVar[frozenset[str]] = READS
    kind: Literal["stall"]
    after_bytes: int = Field(1000, ge=0)
    seconds: float = Field(gt=0)


class IgnoreRange(Fault):
    """The Range header is not honoured: 200 with the whole object."""

    ops: ClassVar[frozenset[str]] = READS
    kind: Literal["ignore_range"]


class _Fate(Fault):
    """What happens to a job is drawn when its submit is accepted."""

    ops: ClassVar[frozenset[str]] = frozenset({"training"})


class FailTraining(_Fate):
    """The job fails half-way with this error message."""

    kind: Literal["fail_training"]
    message: str = "training failed: CUDA out of memory"


class FailDeploy(_Fate):
    """The training ends well, but its model is never deployed: its weights stay, beside a status and an error message.
    No page names a word for it; with ``word`` INFERENCE_QUEUED, only the message tells."""

    kind: Literal["fail_deploy"]
    word: str = "INFERENCE_FAILED"
    message: str = "no GPU is free"


class UnknownStatus(_Fate):
    """While it trains, the job shows a status that no page documents."""

    kind: Literal["unknown_status"]
    word: str = "WARMING_UP"


class ListLag(_Fate):
    """The job appears in list only after this time."""

    kind: Literal["list_lag"]
    seconds: float = Field(gt=0)


class Hidden(_Fate):
    """The job never appears in list; details knows it."""

    kind: Literal["hidden"]


class Hold(_Fate):
    """The job never leaves the status TRAINING_INITIATED (until it is released)."""

    kind: Literal["hold"]


AnyFault = Annotated[
    HttpError | ReplyLost | Reset | Slow | RateLimited | MalformedJson | Html200 | PartialList | SlowDown | Truncated
    | Corrupted | Stall | IgnoreRange | FailTraining | FailDeploy | UnknownStatus | ListLag | Hidden | Hold,
    Field(discriminator="kind"),
]  # fmt: skip
FAULT: TypeAdapter[AnyFault] = TypeAdapter(AnyFault)


_KINDS: dict[str, type[Fault]] = {
    get_args(each.model_fields["kind"].annotation)[0]: each for each in get_args(get_args(AnyFault)[0])
}


def read_fault(raw: Any) -> AnyFault:
    """Read a fault as JSON has it.

    Raises:
        ValueError: it is none; the sentence names what is known in place of an unknown operation or kind.
    """
    if not isinstance(raw, dict):
        raise ValueError("a fault is a JSON object with an op and a kind")  # noqa: TRY004 - a wrong value, not a defect
    op, kind = raw.get("op"), raw.get("kind")
    known = [*get_args(ApiOp), *get_args(StorageOp), "training", "api"]
    if op not in known:
        raise ValueError(f"there is no operation {op!r}; known: {', '.join(known)}")
    fitting = [name for name, each in _KINDS.items() if op in each.ops]
    if kind not in fitting:
        raise ValueError(f"{op} has no fault of the kind {kind!r}; known: {', '.join(fitting)}")
    return FAULT.validate_python(raw)


class _Armed:
    """A fault in the book, with what is left of its count."""

    def __init__(self, number: int, fault: AnyFault) -> None:
        self.number = number
        self.fault = fault
        self.left = fault.count
        self.fired = 0

    def describe(self) -> dict[str, Any]:
        return {"id": self.number, **self.fault.model_dump(), "left": self.left, "fired": self.fired}


class FaultBook:
    """The faults that are armed now, and how often each kind has fired."""

    def __init__(self, faults: Sequence[AnyFault], seed: int | None) -> None:
        self.random = random.Random(seed)  # noqa: S311 - test faults, no secret
        self.fired: Counter[str] = Counter()
        self._numbers = itertools.count(1)
        self._armed: dict[int, _Armed] = {}
        for fault in faults:
            self.add(fault)

    def add(self, fault: AnyFault) -> int:
        """Arm a fault and return its number."""
        armed = _Armed(next(self._numbers), fault)
        self._armed[armed.number] = armed
        return armed.number

    def remove(self, number: int) -> bool:
        """Disarm one fault; False if there is none of that number."""
        return self._armed.pop(number, None) is not None

    def clear(self) -> None:
        """Disarm all faults."""
        self._armed.clear()

    def describe(self) -> list[dict[str, Any]]:
        """The armed faults and those that are used up, as JSON."""
        return [armed.describe() for armed in self._armed.values()]

    def draw(self, op: str, text: str) -> list[AnyFault]:
        """The faults that fire for this call, each taken from its count."""
        fired: list[AnyFault] = []
        decided = False
        for armed in self._armed.values():
            if armed.left == 0 or (decided and armed.fault.decides) or not armed.fault.applies_to(op, text):
                continue
            if armed.fault.probability < 1 and self.random.random() >= armed.fault.probability:
                continue
            armed.fired += 1
            if armed.left is not None:
                armed.left -= 1
            self.fired[armed.fault.kind] += 1
            fired.append(armed.fault)
            decided = decided or armed.fault.decides
        return fired

    def put_back(self, faults: Sequence[AnyFault]) -> None:
        """Arm faults again that have fired for a call whose reply they could not change."""
        for armed in self._armed.values():
            if any(armed.fault is fault for fault in faults):
                armed.fired -= 1
                if armed.left is not None:
                    armed.left += 1
                self.fired.subtract([armed.fault.kind])
