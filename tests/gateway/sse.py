"""Reading server-sent events as a browser does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True)
class Sent:
    """One event of a stream."""

    id: str
    event: str
    data: dict[str, Any]

    @property
    def kind(self) -> str:
        """The last word but one of a CloudEvent's type."""
        return str(self.data["type"]).split(".")[-2]


@contextmanager
def stream(http: httpx.Client, path: str, last_event_id: str | None = None) -> Iterator[Iterator[Sent]]:
    """Open a stream; what it yields waits for the next event, and ends with the stream."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    with http.stream("GET", path, headers=headers) as reply:
        assert reply.status_code == 200, reply.read()
        assert reply.headers["content-type"].startswith("text/event-stream")
        yield _events(reply.iter_lines())


def _events(lines: Iterator[str]) -> Iterator[Sent]:
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Sent(fields.get("id", ""), fields.get("event", "message"), json.loads(fields["data"]))
            fields = {}
        else:
            fields = {}
