"""What tests of deliveries need: jobs with events, a web receiver that remembers, and the notifier without threads."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol

import redis
from standardwebhooks import Webhook

from finetune_queue.contract import EventType, JobRecord, JobState, new_job_id, parse_sink
from finetune_queue.store import Change, SinkLines
from finetune_worker.container import Container
from finetune_worker.delivery import deliver_line
from finetune_worker.notifier import Notifier
from support.samples import sample_request
from support.until import until
from support.web import Answer, Web

THREE = ["accepted", "uploading", "cancelled"]
"""The kinds of the events of a job that was cancelled early."""

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # the one of Standard Webhooks' own examples


class Receiver(Web):
    """A web sink: ``got`` lists the events that it took, with their headers in ``got_headers``.

    ``refuse`` is a list of answers to give first, one for each request.
    """

    def __init__(self, port: int = 0) -> None:
        super().__init__(port=port)
        self.got: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.got_headers: list[dict[str, str]] = []
        self.refuse: list[Answer | Callable[[BaseHTTPRequestHandler], None]] = []
        self.routes = dict.fromkeys(("/", "/hook", "/other"), self._take)

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
        answer = self.refuse.pop(0) if self.refuse else Answer(status=204)
        if not isinstance(answer, Answer):
            answer(handler)
            return
        if answer.status < 300:
            self.bodies.append(body)
            self.got.append(json.loads(body))
            self.got_headers.append({name.lower(): value for name, value in handler.headers.items()})
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        handler.close_connection = True

    def verified(self, secret: str = SECRET) -> int:
        """Check the signatures of all that came with the library of Standard Webhooks; returns how many there were."""
        for body, headers in zip(self.bodies, self.got_headers, strict=True):
            Webhook(secret).verify(body, headers)
        return len(self.bodies)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Return the last word of each event's type."""
    return [event["type"].split(".")[-2] for event in events]


class Deliveries:
    """A worker's notifier whose passes a test runs itself, and jobs to tell of."""

    def __init__(self, container: Container, client: redis.Redis) -> None:
        self.container = container
        self.outbox = container.outbox
        self.lines = SinkLines(client)
        self.stopping = threading.Event()
        self.notifier = Notifier(container, self.stopping)

    def job(self, **request: Any) -> JobRecord:
        """Return a job that was just accepted: one event."""
        job, _ = self.container.jobs.register(new_job_id(), sample_request(**request), delay=60)
        return job

    def jobs_in_lane(self, count: int, url: str, lane: int = 0) -> list[JobRecord]:
        """Return jobs whose events wait for the sink in one of its lanes, all in the same."""
        sink, found = parse_sink(url), list[JobRecord]()
        while len(found) < count:
            job_id = new_job_id()
            if sink.line(job_id).endswith(f"#{lane}"):
                job, _ = self.container.jobs.register(job_id, sample_request(reply_to=[url]), delay=60)
                found.append(job)
        return found

    def go(self, job: JobRecord, *states: JobState) -> JobRecord:
        """Take the job through states, an event each."""
        for state in states:
            delay = None if state.terminal else 60.0
            job = self.container.jobs.transition(job, Change(delay=delay), to=state)
        return job

    def cancelled(self, **request: Any) -> JobRecord:
        """Return a job with three events: accepted, uploading, cancelled."""
        return self.go(self.job(**request), JobState.UPLOADING, JobState.CANCELLED)

    def news(self, job: JobRecord) -> JobRecord:
        """Tell of a change within the job's state."""
        return self.container.jobs.transition(job, Change(delay=60), event=EventType.PROGRESS)

    def line_up(self) -> None:
        """Move what is in the outbox into lines."""
        self.notifier._line_up()

    def deliver(self) -> int:
        """Run one pass over the lines that are due, in this thread; returns how many there were."""
        self.line_up()
        holds, _ = self.outbox.take_lines(100, self.container.settings.finetune_lease)
        for hold in holds:
            deliver_line(self.container, hold, threading.Event())
        return len(holds)

    def until_done(self, seconds: float = 20) -> None:
        """Deliver until no sink lacks anything."""

        def done() -> bool:
            self.deliver()
            return not self.lines.all()

        until(done, seconds=seconds)


class MakeDeliveries(Protocol):
    """Makes them with settings as environment variables."""

    def __call__(self, **settings: str) -> Deliveries: ...


def listed(client: Any, name: str) -> list[dict[str, Any]]:
    """Return the events in a list sink, oldest first."""
    return [json.loads(row) for row in reversed(client.lrange(name, 0, -1))]
