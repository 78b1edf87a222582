"""Events: those of a job and those of all, by pages and as server-sent events."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.concurrency import run_in_threadpool
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import StreamingResponse

from finetune_queue.contract import Event
from finetune_queue.gateway.backend import Backend
from finetune_queue.gateway.hub import Batch
from finetune_queue.gateway.models import EventList, EventQuery, FeedList, FeedQuery, OptionalNumber, OptionalPlace
from finetune_queue.gateway.problems import documented
from finetune_queue.gateway.routes.deps import BackendDep, JobId

router = APIRouter(prefix="/v1", tags=["events"])

_PAGE = 200

_AFTER = "The id of the last event seen; the stream continues after it."
LastNumber = Annotated[OptionalNumber | SkipJsonSchema[None], Header(description=_AFTER)]
LastPlace = Annotated[OptionalPlace | SkipJsonSchema[None], Header(description=_AFTER)]

_SENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "description": "The place to resume from."},
        "event": {"type": "string", "description": "`end` after a job's last event; otherwise absent."},
        "data": {"type": "string", "contentMediaType": "application/cloudevents+json"},
        "retry": {"type": "integer"},
    },
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events: `data` is the CloudEvent. A comment is sent every few seconds.",
        "content": {"text/event-stream": {"itemSchema": _SENT}},
    }
}


@router.get("/jobs/{job_id}/events", responses=documented("job-not-found", "job-unreadable", "invalid-request"))
def job_events(job_id: JobId, query: Annotated[EventQuery, Query()], backend: BackendDep) -> EventList:
    """List a job's events, oldest first. The event numbered n has the id `JOB-n`."""
    backend.queue.get(job_id)
    events = backend.queue.events(job_id, after=query.after)[: query.limit]
    return EventList(events=events, next=query.after + len(events))


@router.get(
    "/jobs/{job_id}/stream",
    response_class=StreamingResponse,
    responses=_STREAM | documented("job-not-found", "job-unreadable", "invalid-request"),
)
async def job_stream(job_id: JobId, backend: BackendDep, last_event_id: LastNumber = None) -> StreamingResponse:
    """Follow a job: its events from the first one, or from after `Last-Event-ID`, and those to come. After the last one
    comes an event named `end`, and the stream is over.
    """
    place = last_event_id or "0"
    backend.hub.check_room()
    await run_in_threadpool(backend.queue.get, job_id)
    return _streaming(backend.hub.stream(job_id, place, partial(_read_job, backend, job_id)))


@router.get("/events", responses=documented("invalid-request"))
def all_events(query: Annotated[FeedQuery, Query()], backend: BackendDep) -> FeedList:
    """List the events of all jobs, oldest first. Only the newest are kept here; each job keeps all of its own."""
    found = backend.feed.after(query.after, query.limit)
    events = [Event.model_validate_json(item.event) for item in found]
    return FeedList(events=events, next=found[-1].place if found else query.after)


@router.get("/stream", response_class=StreamingResponse, responses=_STREAM | documented("invalid-request"))
async def all_stream(backend: BackendDep, last_event_id: LastPlace = None) -> StreamingResponse:
    """Follow the events of all jobs, from now on or from after `Last-Event-ID`."""
    backend.hub.check_room()
    place = last_event_id if last_event_id else await run_in_threadpool(backend.feed.latest)
    return _streaming(backend.hub.stream(None, place, partial(_read_all, backend)))


def _read_job(backend: Backend, job_id: str, place: str) -> Batch:
    # The job first: what it says of its events is then true of the list.
    record = backend.jobs.get(job_id)
    after = int(place)
    events = backend.jobs.events(job_id, after=after)
    items = [(str(after + number), event.model_dump_json()) for number, event in enumerate(events[:_PAGE], start=1)]
    more = len(events) > _PAGE
    seen = after + len(items)
    return Batch(items, more, ended=record.state.terminal and not more and seen >= record.event_seq)


def _read_all(backend: Backend, place: str) -> Batch:
    found = backend.feed.after(place, _PAGE)
    return Batch([(item.place, item.event) for item in found], more=len(found) == _PAGE)


def _streaming(body: AsyncIterator[bytes]) -> StreamingResponse:
    # The second header keeps nginx from collecting the events.
    return StreamingResponse(body, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
