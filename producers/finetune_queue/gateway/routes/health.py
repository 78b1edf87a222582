"""Probes and metrics."""

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import Response

from finetune_queue.gateway.problems import documented, later
from finetune_queue.gateway.routes.deps import BackendDep, admit

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """All is well."""

    status: str


@router.head("/livez")
@router.get("/livez")
async def live() -> Health:
    """Say that the process answers. Asks nothing else."""
    return Health(status="ok")


@router.head("/readyz", responses=documented("queue-unavailable"))
@router.get("/readyz", responses=documented("queue-unavailable"))
async def ready(backend: BackendDep) -> Health:
    """Say whether the queue can be used."""
    facts = await run_in_threadpool(backend.facts)
    if facts.replica:
        raise later("queue-unavailable", "The queue's Redis is a replica, as during a failover: it accepts no jobs.")
    if await run_in_threadpool(backend.refusal):
        raise later("queue-unavailable", "The queue's Redis is full, or its disk is: it accepts no jobs.")
    return Health(status="ok")


_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


@router.get(
    "/metrics",
    response_class=Response,
    responses=_TEXT | documented("unauthorized", "rate-limited"),
    dependencies=[Depends(admit)],
)
def metrics(backend: BackendDep) -> Response:
    """Give the numbers of the queue, as it is now, and of this process."""
    return Response(backend.metrics.render(), media_type=CONTENT_TYPE_LATEST)
