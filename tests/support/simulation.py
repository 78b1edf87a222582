"""A world that a test moves by hand: its own clock under the real scripts, and a Segmind that does what it is told.

Only what has a time of its own is replaced: `TIME` in the scripts (the rest of their text is what production runs),
the monotonic clock, and the other side of the API client and of the storage. So a day passes at once, and the same
steps always give the same end.
"""

import hashlib
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import pytest
import redis
from pydantic import SecretStr

from finetune_queue import sources
from finetune_queue.sources import PublicArchive
from finetune_queue.store import CALL_MARGIN, START_WITHIN, keys, scripts
from finetune_worker.segmind.errors import NotSent, OutcomeUnknown, RateLimited, Rejected, SegmindError, Unavailable
from finetune_worker.segmind.models import FinetuneDetails, FinetuneItem, PresignedUpload, SubmitReply, SubmitRequest
from finetune_worker.stages import download, upload
from finetune_worker.transfer.download import Download
from finetune_worker.transfer.errors import TryAgain
from segmind_sandbox.weights import Weights
from support.points import Points

T = TypeVar("T")

START_MS = 1_700_000_000_000
"""When all begins: so long ago that no history comes to the real present, by which Redis names a stream's entries: they
would then be older than the retention, and be trimmed."""
WEIGHTS_BYTES = 4096

_CLOCK = f"{keys.TAG}:clock"
_TIME = (
    f"(function() local ms = redis.call('GET', '{_CLOCK}') return {{math.floor(ms / 1000), ms % 1000 * 1000}} end)()"
)


class Clock:
    """The only time there is, in milliseconds; the scripts read it from a key."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.scripts: dict[str, str] = {}  # their names by what the server calls them
        self.reset()

    def reset(self) -> None:
        """Go back to the start, for a server that is empty."""
        self.ms = START_MS
        self.advance(0)

    def advance(self, seconds: float) -> None:
        self.ms += int(seconds * 1000)
        self._client.set(_CLOCK, self.ms)

    def rule(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of the server's clock and of the process's."""
        load = scripts.load

        def on_this_clock(client: redis.Redis, name: str) -> scripts.Script:
            registered: Any = load(client, name)
            text, count = re.subn(re.escape("redis.call('TIME')"), lambda _: _TIME, registered.script)
            assert count <= 1
            script: Any = client.register_script(text)
            self.scripts[script.sha] = f"{name}.lua"
            return cast("scripts.Script", script)

        patch.setattr(scripts, "load", on_this_clock)
        patch.setattr(redis.Redis, "time", lambda _: (self.ms // 1000, self.ms % 1000 * 1000))
        elsewhere = time.monotonic

        def monotonic() -> float:
            # By who asks: a list of our modules could lack one, which would compare two clocks.
            ours = sys._getframe(1).f_globals["__name__"].startswith("finetune_")
            return self.ms / 1000 if ours else elsewhere()

        patch.setattr(time, "monotonic", monotonic)


class Died(BaseException):
    """The worker is gone, as after SIGKILL. Nothing that it does afterwards, as in a `finally`, has an effect."""


class Interruption(Points):
    """Interrupts a worker at one of its calls: it dies, loses Redis, or stands still while the world goes on."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._scripts = clock.scripts
        self._at: str | int = 0  # how many calls to let pass, or a part of the name of the call
        self._what: Callable[[str], None] | None = None  # what to do there, once
        self._dead = False
        self._cut = False  # no connection to Redis
        self._afterwards: Callable[[str], None] | None = None  # what to do after the next command to Redis, once
        self._thread = threading.get_ident()

    def reach(self, call: str) -> None:
        if threading.get_ident() != self._thread:
            return  # the process's counters leave from a thread of their own
        if self._dead:
            raise Died
        if self._cut and call.startswith("redis"):
            raise redis.ConnectionError
        if self._what is None:
            return
        if isinstance(self._at, int):
            here = self._at == 0
            self._at -= 1
        else:
            here = self._at in call
        if here:
            what, self._what = self._what, None
            what(call)

    def passed(self, call: str) -> None:
        if self._afterwards is not None and call.startswith("redis") and threading.get_ident() == self._thread:
            what, self._afterwards = self._afterwards, None
            what(call)

    def run(self, work: Callable[[], None], *, at: str | int, what: Callable[[str], None]) -> bool:
        """Do ``work``, and ``what`` before its call number ``at``, or its first one with ``at`` in its name. Returns
        False if it was not done to its end."""
        self._at, self._what = at, what
        try:
            work()
        except (Died, redis.ConnectionError):
            return False
        finally:
            self._what, self._afterwards, self._dead, self._cut = None, None, False, False
        return True

    def die(self, _call: str) -> None:
        """Be gone from now on."""
        self._dead = True
        raise Died

    def lose_redis(self, call: str) -> None:
        """Have no connection from now on."""
        self._cut = True
        self.reach(call)

    def after_it(self, what: Callable[[str], None]) -> Callable[[str], None]:
        """Have ``what`` come not before the call, but between a command's effect and what its answer leads to."""

        def remember(_call: str) -> None:
            self._afterwards = what

        return remember

    def lose_reply(self, _call: str) -> None:
        """Have no answer."""
        raise redis.ConnectionError


@dataclass
class Training:
    """A training as Segmind has it."""

    finetune_id: str
    request: SubmitRequest
    created_ms: int
    visible_ms: int
    status: str = "REQUESTED"
    error: str | None = None
    public: bool = False

    def move(self, status: str) -> None:
        """Go on to a status, unless it is deployed or has failed; one that has its weights may fail to be deployed."""
        ends = {"AVAILABLE", "FAILED"}
        if self.status in ends or (self.status == "TRAINING_COMPLETED" and status not in ends):
            return
        self.status = status
        self.error = "no faces found" if status == "FAILED" else None

    @property
    def fields(self) -> dict[str, Any]:
        done = self.status in {"TRAINING_COMPLETED", "AVAILABLE"}
        return {
            "finetune_id": self.finetune_id,
            "name": self.request.name,
            "status": self.status,
            "data_source_path": self.request.data_source_path,
            "error_message": self.error,
            "cloud_storage_url": f"https://weights.example/{self.finetune_id}" if done else None,
        }


class Listing(list[FinetuneItem]):
    """What the client gives for a list that was read whole."""

    complete = True
    skipped = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@dataclass
class Segmind:
    """In place of the client, the API behind it and the storages: what was accepted, seen and refused."""

    clock: Clock
    points: Interruption
    lag: float = 0.0  # seconds until the list shows a new training
    trainings: dict[str, Training] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)  # operation, or "any", and kind; each fires once
    accepted: Counter[tuple[str, str]] = field(default_factory=Counter)  # submits by name and dataset
    refused: set[str] = field(default_factory=set)  # names of the jobs, or `access_of` the models, that met "rejected"
    arrivals: list[int] = field(default_factory=list)  # times (ms) of the calls that count against the limit
    late: bool = False  # the next call is not counted: it stood still for longer than its slot lasts
    to_come: list[tuple[int, Callable[[], object]]] = field(default_factory=list)  # what "acts late": when (ms), effect

    # the client's calls

    def presign_upload(self, name: str) -> PresignedUpload:
        url = f"https://storage.example/{name}.zip"
        # One that is kept for the next try, one that ends too soon to be kept, one that does not say.
        ends = ("&Expires=4102444800", f"&Expires={int(time.time()) + 30}", "")[len(self.arrivals) % 3]
        made = PresignedUpload(presigned_url=SecretStr(f"{url}?signed{ends}"), s3_url=url)
        return self._call("presign", name, lambda: made)

    def submit(self, request: SubmitRequest) -> SubmitReply:
        return self._call("submit", request.name, lambda: self._accept(request))

    def details(self, finetune_id: str) -> FinetuneDetails:
        found = self.trainings[finetune_id]
        created = datetime.fromtimestamp(found.created_ms / 1000, UTC).isoformat()
        return self._call(
            "details",
            found.request.name,
            lambda: FinetuneDetails(**found.fields, created_ts=created, instance_prompt=found.request.instance_prompt),
        )

    def list_finetunes(self) -> Listing:
        def seen() -> Listing:
            visible = [each for each in self.trainings.values() if each.visible_ms <= self.clock.ms]
            return Listing(FinetuneItem(**each.fields) for each in reversed(visible))

        return self._call("list", "", seen)

    def set_access(self, finetune_id: str, *, public: bool) -> None:
        def change() -> None:
            self.trainings[finetune_id].public = public

        self._call("access", access_of(finetune_id), change)

    def close(self) -> None:
        """Has nothing to close."""

    def finish(self) -> None:
        """Let every training come to its end."""
        for training in self.trainings.values():
            training.move("AVAILABLE")

    def catch_up(self) -> None:
        """Have the effects of calls that act late, and whose time has come."""
        while self.to_come and self.to_come[0][0] <= self.clock.ms:
            self.to_come.pop(0)[1]()

    def _accept(self, request: SubmitRequest) -> SubmitReply:
        self.accepted[request.name, request.data_source_path] += 1
        now = self.clock.ms
        made = Training(f"ft-{len(self.trainings) + 1}", request, now, now + int(self.lag * 1000))
        self.trainings[made.finetune_id] = made
        return SubmitReply(finetune_id=made.finetune_id, status=made.status)

    def _call(self, operation: str, subject: str, effect: Callable[[], T]) -> T:
        self.points.reach(f"segmind: {operation}")
        fault = next((each for each in self.faults if each[0] in {operation, "any"}), None)
        kind = "none"
        if fault is not None:
            self.faults.remove(fault)
            kind = fault[1]
        if kind == "refused connection":
            raise _error(NotSent, operation)
        if kind == "slow":
            self.clock.advance(LATENCY)
        if not self.late:
            self.arrivals.append(self.clock.ms)
        self.late = False
        if kind == "429":
            raise _error(RateLimited, operation)
        if kind == "429 with a time":
            raise _error(RateLimited, operation, retry_after=120.0)
        if kind == "rejected":
            self.refused.add(subject)
            raise _error(Rejected, operation, status=422)
        if kind == "never arrived":
            raise _error(OutcomeUnknown if operation == "submit" else Unavailable, operation)
        if kind == "acts late":
            self.to_come.append((self.clock.ms + int(ACTS_LATE * 1000), effect))
            raise _error(Unavailable, operation)
        self.catch_up()
        result = effect()
        self.points.reach(f"segmind: {operation} reply")
        if kind == "reply lost":
            self.clock.advance(CALL_TIMEOUT)
            raise _error(OutcomeUnknown if operation == "submit" else Unavailable, operation)
        return result

    # the storages, and what is checked before

    def stand_in(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of what moves bytes; what checks, names and stores them stays."""
        resolve = sources.resolve_dataset

        def resolved(dataset: str, **options: Any) -> Any:
            if dataset.startswith("https:"):
                return PublicArchive(dataset, 1000)
            return resolve(dataset, **options)

        patch.setattr(upload, "resolve_dataset", resolved)
        patch.setattr(upload, "upload_presigned", self._put)
        patch.setattr(download, "fetch", self._fetch)

    def _put(self, upload_to: PresignedUpload, path: Path, **_: Any) -> int:
        self._move("upload")
        return path.stat().st_size

    def _fetch(self, url: str, part: Path, **_: Any) -> Download:
        self._move("download")
        body = weights(url.rpartition("/")[2])
        part.write_bytes(body)
        return Download(len(body), hashlib.sha256(body).hexdigest(), None)

    def _move(self, operation: str) -> None:
        self.points.reach(f"storage: {operation}")
        if (operation, "cut") in self.faults:
            self.faults.remove((operation, "cut"))
            raise TryAgain("connection_lost", "The connection broke.")


CALL_TIMEOUT = 60.0
"""Seconds, as production has it: a reply that is lost is waited for so long."""

LATENCY = 20.0
"""Seconds that a slow request is on its way."""

LAG = 130.0
"""Seconds after which the list shows a training that it does not show at once."""


ACTS_LATE = CALL_TIMEOUT + CALL_MARGIN - START_WITHIN - 1
"""Seconds after which a call is acted on that broke off on its way: the latest that docs/guarantees.md allows."""


def access_of(finetune_id: str) -> str:
    """Return what a change of a model's access is called among what was refused."""
    return f"access of {finetune_id}"


def weights(finetune_id: str) -> bytes:
    """Return the weights of a training."""
    made = Weights(finetune_id, 0, WEIGHTS_BYTES)
    body = b""
    while len(body) < WEIGHTS_BYTES:
        body += made.read(len(body), WEIGHTS_BYTES)
    return body


def _error(kind: type[SegmindError], operation: str, **fields: Any) -> SegmindError:
    return kind("test", detail=f"The {operation} met trouble.", **fields)
