"""The receiver of Segmind's webhooks: each is a hint to look, and nothing in it is believed."""

from fastapi import APIRouter, Request, Response

from finetune_queue.gateway.hook_paths import token_fits
from finetune_queue.gateway.problems import ProblemError, documented
from finetune_queue.gateway.routes.deps import BackendDep

router = APIRouter(prefix="/hooks", tags=["webhooks"])


@router.post(
    "/{account}/{token}",
    status_code=202,
    response_class=Response,
    responses={
        202: {"description": "Accepted; the account is swept soon."},
        **documented("not-found", "too-large", "request-timeout", "invalid-request"),
    },
)
async def take_hook(account: str, token: str, request: Request, backend: BackendDep) -> Response:
    """Take a webhook from Segmind, whatever is in it: it brings the account's next sweep forward, within the share of
    calls that sweeps may use. Forged, repeated or late ones change nothing else.
    """
    secret = backend.settings.finetune_hook_secret
    if secret is None or not token_fits(secret, account, token):
        raise ProblemError("not-found", "There is nothing at this address.")
    async for _ in request.stream():
        pass  # read, so that the connection can be used again; the edge bounds it
    backend.hints.take(account)
    return Response(status_code=202)
