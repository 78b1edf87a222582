"""Jobs: submit, read, list, and what can be done with one."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic.json_schema import SkipJsonSchema

from finetune_queue.gateway.bodies import JsonRoute
from finetune_queue.gateway.models import AccessBody, JobList, JobView, Key, ListQuery, SubmitBody, SubmittedJob
from finetune_queue.gateway.problems import FieldProblem, ProblemError, documented
from finetune_queue.gateway.routes.deps import BackendDep, JobId

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=JsonRoute)

_NO_CHANGE = ("job-not-found", "not-possible", "job-unreadable")
"""Why a job may not be changed."""

_BODY = ("bad-request", "too-large", "request-timeout", "unsupported-media-type")
"""Why a body in JSON may not be read."""

_KEY = "idempotency-key"

IdempotencyKey = Annotated[
    Key | SkipJsonSchema[None],
    Header(description="The same key and request give the same job, however often they are sent."),
]


@router.post(
    "",
    status_code=202,
    response_model_exclude_none=True,
    responses={
        202: {"headers": {"Location": {"schema": {"type": "string"}, "description": "The job."}}},
        **documented(*_BODY, "invalid-request", "idempotency-keys-differ", "idempotency-conflict", "job-unreadable"),
    },
)
def submit(
    body: SubmitBody,
    request: Request,
    response: Response,
    backend: BackendDep,
    idempotency_key: IdempotencyKey = None,
) -> SubmittedJob:
    """Put a fine-tune on the queue. Each accepted job starts one paid training at Segmind, which cannot be
    cancelled: send an `Idempotency-Key`, so that a request whose answer was lost can safely be sent again.
    """
    if len(set(map(_unquoted, request.headers.getlist(_KEY)))) > 1:
        wrong = [FieldProblem(where=_KEY, detail="is given more than once, with different keys")]
        raise ProblemError("invalid-request", f"{_KEY}: {wrong[0].detail}", errors=wrong)
    key = _unquoted(idempotency_key)
    if key is not None and body.idempotency_key not in {None, key}:
        raise ProblemError("idempotency-keys-differ", "Send the same key in both, or in one of them alone.")
    job = backend.queue.submit(body, idempotency_key=key)
    view = SubmittedJob.by(job)
    response.headers["Location"] = view.links.self
    return view


@router.get("", response_model_exclude_none=True, responses=documented("invalid-request"))
def list_jobs(query: Annotated[ListQuery, Query()], backend: BackendDep) -> JobList:
    """List jobs, newest first. Continue with `cursor` while the reply has `next`."""
    labels = query.labels
    if labels is None:
        return JobList(jobs=[])
    page = backend.queue.page(
        state=query.state, account=query.account, labels=labels, limit=query.limit, cursor=query.cursor
    )
    return JobList(jobs=[JobView.of(job) for job in page.jobs], next=page.cursor)


@router.get("/{job_id}", response_model_exclude_none=True, responses=documented("job-not-found", "job-unreadable"))
def get_job(job_id: JobId, backend: BackendDep) -> JobView:
    """Show one job, and why it waits."""
    job = backend.queue.get(job_id)
    return JobView.of(job, backend.queue.waiting(job))


@router.post("/{job_id}/cancel", response_model_exclude_none=True, responses=documented(*_NO_CHANGE))
def cancel(job_id: JobId, backend: BackendDep) -> JobView:
    """Stop a job; at once, or with `cancel_requested` as soon as the worker that holds it sees that. Segmind's training
    continues and is still charged: its API has no cancel.
    """
    return JobView.of(backend.queue.cancel(job_id))


@router.post("/{job_id}/retry", response_model_exclude_none=True, responses=documented(*_NO_CHANGE))
def retry(job_id: JobId, backend: BackendDep) -> JobView:
    """Resume a failed job at the stage that failed. A failed download never trains again."""
    return JobView.of(backend.queue.retry(job_id))


@router.post(
    "/{job_id}/access",
    status_code=202,
    response_model_exclude_none=True,
    responses=documented(*_BODY, *_NO_CHANGE),
)
def access(job_id: JobId, body: AccessBody, backend: BackendDep) -> JobView:
    """Have the model of an ended job made public or private at Segmind. The job's `access` says what is wanted, what
    Segmind has confirmed, and why a change was refused.
    """
    return JobView.of(backend.queue.set_public(job_id, body.public))


def _unquoted(key: str | None) -> str | None:
    """Return the key of a header that is written plainly or as a quoted string (draft-ietf-httpapi-idempotency-key)."""
    if key is not None and len(key) > 1 and key[0] == key[-1] == '"':
        return key[1:-1]
    return key
