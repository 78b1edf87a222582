"""Dead letters: messages that could not become a job, and events that a sink did not take.

Each is kept as it came, with the reason, for as long as ended jobs are.
"""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import redis

from finetune_queue.store import keys
from finetune_queue.store.feed import PLACE

MOST_LETTERS = 100_000
"""About how many dead letters are kept; the oldest go first."""


@dataclass(frozen=True, slots=True)
class TaskCall:
    """A message that Celery could read: the arguments of ``finetune.run``."""

    args: Sequence[Any]
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A message that Celery could not read, or had no task for: its bytes, and what came with them."""

    body: bytes
    headers: dict[str, Any]
    content_type: str
    content_encoding: str


@dataclass(frozen=True, slots=True)
class LostDelivery:
    """Events of one job, in order, and the sink that did not take them; its URL may hold a password."""

    job_id: str
    sink: str
    sink_url: str
    events: list[str]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter. ``content`` can be sent again; ``id`` is its place in the stream, empty before it has one.

    Nothing else knows how it is written there.
    """

    message_id: str
    reason: str
    problems: list[str]
    content: TaskCall | RawMessage | LostDelivery
    id: str = ""

    @property
    def at_ms(self) -> int:
        """When it was set aside, by the Redis server's clock."""
        return int(self.id.partition("-")[0])

    @property
    def body(self) -> str:
        """The content as a text for people."""
        return _packed(self.content)["body"]

    def fields(self) -> dict[str, str]:
        """Return the fields of its entry in the stream."""
        about = {"message_id": self.message_id, "reason": self.reason, "problems": json.dumps(self.problems)}
        return about | _packed(self.content)

    @classmethod
    def parse(cls, place: str, fields: dict[str, str]) -> Self:
        """Read a dead letter from the fields of its entry in the stream, whose id is ``place``."""
        return cls(
            message_id=fields["message_id"],
            reason=fields["reason"],
            problems=json.loads(fields["problems"]),
            content=_unpacked(fields),
            id=place,
        )


def _packed(content: TaskCall | RawMessage | LostDelivery) -> dict[str, str]:
    """Return the fields that hold a content. Bytes that are text are kept as text."""
    match content:
        case LostDelivery():
            sink = {"job_id": content.job_id, "sink": content.sink, "sink_url": content.sink_url}
            return {"kind": "delivery", **sink, "body": f"[{','.join(content.events)}]"}
        case TaskCall():
            return {"kind": "message", "body": json.dumps([list(content.args), content.kwargs], default=str)}
    envelope = {
        "headers": content.headers,
        "content_type": content.content_type,
        "content_encoding": content.content_encoding,
    }
    body = content.body.decode(errors="backslashreplace")
    if body.encode() != content.body:
        envelope["base64"] = base64.b64encode(content.body).decode()
    return {"kind": "message", "body": body, "envelope": json.dumps(envelope, default=str)}


def _unpacked(fields: dict[str, str]) -> TaskCall | RawMessage | LostDelivery:
    if fields["kind"] == "delivery":
        events = [json.dumps(event, separators=(",", ":")) for event in json.loads(fields["body"])]
        return LostDelivery(fields["job_id"], fields["sink"], fields["sink_url"], events)
    if "envelope" not in fields:
        args, kwargs = json.loads(fields["body"])
        return TaskCall(args, kwargs)
    envelope = json.loads(fields["envelope"])
    body = envelope.pop("base64", None)
    return RawMessage(body=fields["body"].encode() if body is None else base64.b64decode(body), **envelope)


class DeadLetters:
    """Reads and removes dead letters."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def newest(self, limit: int) -> list[DeadLetter]:
        """Return up to ``limit`` dead letters, newest first."""
        rows = cast("list[tuple[str, dict[str, str]]]", self._redis.xrevrange(keys.dead_letters(), count=limit))
        return [DeadLetter.parse(place, fields) for place, fields in rows]

    def get(self, letter_id: str) -> DeadLetter | None:
        """Return the dead letter with this id, None if there is none."""
        # Part of an id would name others to Redis, and most texts are an error.
        if re.fullmatch(PLACE, letter_id) is None:
            return None
        rows = cast(
            "list[tuple[str, dict[str, str]]]", self._redis.xrange(keys.dead_letters(), letter_id, letter_id, count=1)
        )
        return DeadLetter.parse(*rows[0]) if rows else None

    def remove(self, letter_id: str) -> None:
        """Remove a dead letter that was sent again."""
        self._redis.xdel(keys.dead_letters(), letter_id)
