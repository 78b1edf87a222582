"""What routes ask for: the backend, a client that may use it, an id that can be one."""

from collections import Counter
from typing import Annotated, cast

from fastapi import Depends, Path, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from finetune_queue.gateway.backend import Backend
from finetune_queue.gateway.models import REPEATABLE
from finetune_queue.gateway.problems import repeated_parameters, unknown_parameters
from finetune_queue.sdk.translation import whole_id

_bearer = HTTPBearer(auto_error=False, description="A token that `finetune gateway token NAME` made.")


async def get_backend(request: Request) -> Backend:
    """Return the process's backend."""
    return cast("Backend", request.app.state.backend)


BackendDep = Annotated[Backend, Depends(get_backend)]


async def admit(
    request: Request,
    backend: BackendDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> None:
    """Let a client in that is known and has not sent too much."""
    client = backend.clients.identify(None if credentials is None else credentials.credentials)
    request.state.client = client
    backend.clients.admit(client)


async def known_query(request: Request) -> None:
    """Refuse a query where a route has none; a query's model refuses what it does not know. `?dry_run=1` must not pass
    in a request that is paid for. Nor may a parameter come twice that has one value: the last would silently win.
    """
    if request.query_params and not request.scope["route"].dependant.query_params:
        raise unknown_parameters(request.query_params)
    counts = Counter(name for name, _ in request.query_params.multi_items())
    if repeated := [name for name, count in counts.items() if count > 1 and name not in REPEATABLE]:
        raise repeated_parameters(repeated)


async def job_id(job_id: Annotated[str, Path(description="The job's id.")]) -> str:
    """Return an id that a job can have: no other text reaches a key of the store."""
    return whole_id(job_id)


JobId = Annotated[str, Depends(job_id)]
