"""Access: makes the model of an ended job public or private at Segmind (Fast Flux API, section 5).

No part of a job's chain: a job that has ended wants it until Segmind has confirmed it or clearly refused. The call may
be repeated, so a worker's death only means that another makes it again.
"""

import time
from functools import partial
from typing import Any

from finetune_queue import messaging
from finetune_queue.contract import ACCESS, Access, EventType, JobError, JobRecord, WaitReason
from finetune_queue.store import (
    CALL_MARGIN,
    CallClass,
    Change,
    ConflictError,
    NoSlot,
    room_score,
)
from finetune_worker.backoff import try_again_in
from finetune_worker.container import Container
from finetune_worker.segmind.errors import MalformedReply, Rejected, Unavailable
from finetune_worker.stages.calls import AccountPausedError, after_outage, call_api, give_back, park, park_paused
from finetune_worker.stages.claim import Claim
from finetune_worker.stages.errors import from_api
from finetune_worker.stages.outcome import Done, Fail, Retry, Wait, after_error
from finetune_worker.stages.runner import claim_lost, guarded, read_job, record, traced


def change_access(container: Container, job_id: str, task_id: str) -> str:
    """Make the change that the job wants, if it still does, and say what came of it.

    Raises:
        redis.RedisError: the store is out of reach; the job's deadline brings it back.
    """
    started = time.monotonic()
    job = read_job(container, job_id)
    if isinstance(job, str):
        return job
    if not job.wants_access:
        return f"nothing to do: the job {job.state.sentence} and wants no other access"
    if job.owner:
        return "nothing to do: another worker has the job"
    with traced(job, messaging.ACCESS, _access_of(job).attempts):
        return _run(container, job, task_id, started)


def _run(container: Container, job: JobRecord, task_id: str, started: float) -> str:
    try:
        claim = Claim(container.jobs, job, task_id, _settled_after(container), container.out_of_time)
        outcome = guarded(container, ACCESS, _call, claim)
        sentence = _conclude(container, claim.job, outcome)
    except ConflictError as error:
        return claim_lost(error)
    record(container, ACCESS, outcome, started, event="access_finished", result=sentence)
    return sentence


def _call(container: Container, claim: Claim) -> Done | Wait | Retry | Fail:
    job = claim.job
    wanted, finetune_id = _access_of(job).wanted, job.finetune_id
    if finetune_id is None:
        return Fail(_no_model(job))
    if job.cancel_requested:
        # The job has ended, and with it the cancel. Left set, it would make the job due at once each time it is parked.
        claim.write(cancel_requested=False)
        job = claim.job
    settles_ms = job.access_settles_ms or 0
    if claim.now_ms < settles_ms:
        why = f"an earlier change may still arrive at Segmind; next: make the model {wanted}"
        return _settle(settles_ms, (settles_ms - claim.now_ms) / 1000, why)
    client = container.segmind(job.account)
    slot = container.budget.take(job.account, job.id, room_score(CallClass.FINISH, job))
    if isinstance(slot, NoSlot):
        return park(job, CallClass.FINISH, slot, f"make the model {wanted}")
    # Renew the claim, which lasts as long as the call can: no later change may reach Segmind before this one.
    try:
        claim.write()
    except ConflictError:
        give_back(container.budget, slot)
        raise
    try:
        public = wanted == "public"
        call_api(container.budget, slot, partial(client.set_access, finetune_id, public=public))
    except AccountPausedError as paused:
        if isinstance(paused.error, Unavailable):
            settled = _settled_after(container)
            left = settled - (time.monotonic() - slot.asked)
            why = f"{paused.error.detail} It may still act on it; next: make the model {wanted}"
            delay = max(left, after_outage(container, job, paused.seconds))
            return _settle(slot.at_ms + int(settled * 1000), delay, why, outages=job.outages + 1)
        return park_paused(job, CallClass.FINISH, paused, f"make the model {wanted}")
    except (Rejected, MalformedReply) as error:
        return after_error(from_api(error, ACCESS))
    return Done(f"the model is {wanted}")


def _no_model(job: JobRecord) -> JobError:
    """The error if there is no model: a retry gave up the one that the change was for, and the job ended before it had
    another."""
    return JobError(
        code="no_model",
        stage=ACCESS,
        message=f"The job {job.state.sentence} without a training at Segmind, so there is no model to make "
        f"{_access_of(job).wanted}.",
        action="Once a job has a model: `finetune access JOB`.",
    )


def _settled_after(container: Container) -> float:
    """Return the seconds from taking a slot after which its call has ended, and can take effect no more."""
    return container.settings.segmind_call_timeout + CALL_MARGIN


def _settle(settles_ms: int, left: float, why: str, **fields: int) -> Wait:
    """Wait until an earlier call without an answer can take effect no more: no other may be made before."""
    return Wait(
        f"parked: {why}", WaitReason.PROVIDER, max(0.0, left), fields={"access_settles_ms": settles_ms, **fields}
    )


def _conclude(container: Container, job: JobRecord, outcome: Done | Wait | Retry | Fail) -> str:
    access = _access_of(job)
    most = container.settings.finetune_max_attempts
    match outcome:
        case Done():
            end_change(container, job, access.granted())
            return outcome.sentence
        case Wait():
            change = Change(delay=outcome.delay, room_score=outcome.room_score)
            container.jobs.transition(job, change, owner="", waiting_for=outcome.reason, **outcome.fields)
            return outcome.sentence
        case Retry() if access.attempts + 1 < most:
            delay = try_again_in(container.settings, access.attempts + 1)
            tried = access.model_copy(update={"attempts": access.attempts + 1, "error": outcome.error})
            change = Change(delay=delay)
            container.jobs.transition(job, change, owner="", waiting_for=WaitReason.BACKOFF, access=tried)
            return f"try {tried.attempts} of {most} failed: {outcome.error.message} Retrying in {delay:.0f} s"
        case Retry() | Fail():
            end_change(container, job, access.refused(outcome.error))
            return f"the model was not made {access.wanted}: {outcome.error.message}"


def end_change(container: Container, job: JobRecord, access: Access) -> None:
    """End the change, which was made or is given up: write down its result, ``access``, and release the job."""
    released: dict[str, Any] = {"owner": "", "outages": 0, "takeovers": 0, "waiting_for": None}
    container.jobs.transition(job, Change(), event=EventType.ACCESS, access=access, **released)


def _access_of(job: JobRecord) -> Access:
    return job.access or Access()
