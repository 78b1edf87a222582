"""The whole queue at one look, for the page and for people's scripts."""

from fastapi import APIRouter

from finetune_queue.gateway.models import OverviewReply
from finetune_queue.gateway.routes.deps import BackendDep

router = APIRouter(prefix="/v1/overview", tags=["overview"])


@router.get("")
def overview(backend: BackendDep) -> OverviewReply:
    """Show how many jobs are in each state and for how long, each account's budget and who waits for it."""
    return backend.looks.get()
