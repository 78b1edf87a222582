"""What there is to run now, for an autoscaler."""

from fastapi import APIRouter

from finetune_queue.gateway.models import LoadReply
from finetune_queue.gateway.routes.deps import BackendDep

router = APIRouter(prefix="/v1/load", tags=["load"])


@router.get("")
def load(backend: BackendDep) -> LoadReply:
    """Show how much each class of workers has to run now; waiting for the API, its budget or a cap does not count."""
    return LoadReply.of(backend.loads.now())
