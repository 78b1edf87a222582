"""The Celery tasks: thin shells that run a stage and say in one sentence what came of it."""

import time
from collections.abc import Mapping
from typing import Any

import structlog
from celery import Celery, Task
from celery.exceptions import Reject
from kombu.exceptions import OperationalError

from finetune_queue import tracing
from finetune_queue.contract import Stage
from finetune_queue.messaging import ACCESS, PRESIGN, RUN, SWEEP, short_name, stage_task
from finetune_queue.store import RedisError
from finetune_worker.intake import PUT_BACK_AFTER, Terms, accept, named_account, named_job, set_aside
from finetune_worker.run_request import JobRequest, RunRequest, SweepRequest
from finetune_worker.runtime import Runtime
from finetune_worker.stages.access import change_access
from finetune_worker.stages.download import download
from finetune_worker.stages.poll import poll
from finetune_worker.stages.publish import publish
from finetune_worker.stages.runner import StageFunction, run_stage
from finetune_worker.stages.submit import submit
from finetune_worker.stages.sweep import sweep_if_due
from finetune_worker.stages.upload import presign, upload

log = structlog.get_logger(__name__)

STAGES: Mapping[Stage, StageFunction] = {
    Stage.UPLOAD: upload,
    Stage.SUBMIT: submit,
    Stage.POLL: poll,
    Stage.DOWNLOAD: download,
    Stage.PUBLISH: publish,
}


class Recovered(Task):  # type: ignore[type-arg]
    """A task that an outage of Redis may interrupt: a deadline starts its work again. An outage fails many tasks, so
    each is logged in one line, where Celery would write a traceback."""

    throws = (RedisError, OperationalError)

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        """Clear the log fields that the task before bound on this thread: one whose message names no job binds none."""
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(task_id=task_id)

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:  # noqa: ARG002
        """Say what happens next; the fields bound for the task say to which job, in which stage."""
        if isinstance(exc, self.throws):
            subject = "another sweep" if self.name == SWEEP else "the job goes on by its deadline"
            log.warning("stage_interrupted", error=str(exc) or type(exc).__name__, next=f"{subject} when Redis answers")


def register(app: Celery, runtime: Runtime) -> None:
    """Declare every task by its explicit name, on this app alone: another of the process has a container of its own."""
    for stage, function in STAGES.items():
        _register_stage(app, runtime, stage_task(stage), stage, function)
    _register_stage(app, runtime, PRESIGN, Stage.UPLOAD, presign)

    # Acks late, and not at all if the child process that runs it dies: until the job is registered, the message is all
    # there is of a raw client's request. A stage's message may be lost with its child: the job's lease ends, and the
    # dispatcher sends another.
    @app.task(
        name=RUN,
        base=Recovered,
        shared=False,
        bind=True,
        acks_late=True,
        reject_on_worker_lost=True,
        Request=RunRequest,
    )
    def run(self: Task[..., str], *args: Any, **kwargs: Any) -> str:
        _bind("run")
        try:
            with tracing.continued(self.request.get("traceparent")):  # as OpenTelemetry's Celery clients send it
                terms = Terms(**{name: self.request.get(name) for name in ("eta", "expires", "revoked")})
                return accept(runtime.container, args, kwargs, message_id=self.request.id or "", terms=terms)
        except RedisError as error:
            # Celery would acknowledge a failed task. A raw client's request must survive the store's outage.
            log.warning("request_put_back", error=str(error))
            time.sleep(PUT_BACK_AFTER)
            raise Reject(str(error), requeue=True) from error

    @app.task(name=SWEEP, base=Recovered, shared=False, bind=True, Request=SweepRequest)
    def sweep_account(self: Task[..., str], *args: Any, **kwargs: Any) -> str:
        if (account := named_account(args, kwargs)) is None:
            return _misdirected(self, runtime, args, kwargs)
        _bind("sweep", account=account)
        with tracing.span(SWEEP, kind="consumer", attributes={tracing.ACCOUNT: account}):
            return sweep_if_due(runtime.container, account)

    @app.task(name=ACCESS, base=Recovered, shared=False, bind=True, Request=JobRequest)
    def access(self: Task[..., str], *args: Any, **kwargs: Any) -> str:
        if (job_id := named_job(args, kwargs)) is None:
            return _misdirected(self, runtime, args, kwargs)
        _bind("access", job_id=job_id)
        return change_access(runtime.container, job_id, self.request.id or "")


def _register_stage(app: Celery, runtime: Runtime, name: str, stage: Stage, function: StageFunction) -> None:
    # Acks early: if the worker dies, the job's deadline starts the stage again. The claim would refuse a redelivery.
    @app.task(name=name, base=Recovered, shared=False, bind=True, Request=JobRequest)
    def run(self: Task[..., str], *args: Any, **kwargs: Any) -> str:
        if (job_id := named_job(args, kwargs)) is None:
            return _misdirected(self, runtime, args, kwargs)
        _bind(short_name(name), job_id=job_id)
        result = run_stage(runtime.container, stage, function, job_id, self.request.id or "", task=name)
        if not result.proceed:
            self.request.chain = None
        return result.sentence


def _misdirected(task: Task[..., str], runtime: Runtime, args: Any, kwargs: Any) -> str:
    """Set aside a request that a raw client sent to a task which is not for clients: ``finetune.submit`` is easily
    taken for the way in."""
    task.request.chain = None
    problem = f"{task.name} is the workers' own: send requests to {RUN}"
    return set_aside(runtime.container, args, kwargs, task.request.id or "", [problem])


def _bind(stage: str, **fields: str) -> None:
    structlog.contextvars.bind_contextvars(stage=stage, **fields)
