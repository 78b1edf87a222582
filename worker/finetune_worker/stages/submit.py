"""Submit: the one call that costs money, has no idempotency key and cannot be taken back (Fast Flux API, section 1).

Before the POST the intent is written and, where Redis keeps a log, confirmed to be in it. A job with an intent is never
submitted again by this stage: only the sweep, which asks Segmind what it has, may adopt a training or clear the intent.
"""

from dataclasses import replace
from functools import partial

import structlog

from finetune_queue.contract import FOUND, UNSENT, JobError, JobRecord, JobState, Stage, WaitReason
from finetune_queue.store import CallClass, ConflictError, NoSlot, NotDurableError, RedisError, Slot, room_score
from finetune_worker.container import Container
from finetune_worker.segmind.client import SegmindClient
from finetune_worker.segmind.errors import OutcomeUnknown, Rejected
from finetune_worker.segmind.models import SubmitReply
from finetune_worker.stages.calls import (
    AccountPausedError,
    StaleCallError,
    call_api,
    give_back,
    longest_call,
    park,
    park_paused,
)
from finetune_worker.stages.claim import Claim
from finetune_worker.stages.errors import from_api
from finetune_worker.stages.outcome import Attention, Done, Fail, Outcome, Retry, Wait
from finetune_worker.stages.reconcile import examine_candidate, examine_named, trained_by
from finetune_worker.stages.training_request import training_request

log = structlog.get_logger(__name__)

DURABLE_WITHIN = 4.0
"""Seconds that Redis may take to confirm that the intent is in its log."""


def submit(container: Container, claim: Claim) -> Outcome:
    """Send the job's training to Segmind, at most once."""
    job = claim.job
    if job.adopting is not None:
        return examine_named(container, claim, job.adopting)
    if job.intent_ms is not None:
        since_ms = max(job.intent_ms, job.entered_ms)  # a retried job is looked for as long again
        if claim.now_ms - since_ms >= container.settings.finetune_training_limit * 1000:
            return _never_found(container, job)
        if job.candidates:
            return examine_candidate(container, claim)
        return _look_for_it(container, job, "no worker has a clear answer")
    client = container.segmind(job.account)  # before the intent, as this worker may have no key for the account
    slot = container.budget.take(job.account, job.id, room_score(CallClass.SUBMIT, job), submit=True, claimed=job)
    if isinstance(slot, NoSlot):
        return park(job, CallClass.SUBMIT, slot, "submit")
    return _send(container, claim, slot, client)


def _send(container: Container, claim: Claim, slot: Slot, client: SegmindClient) -> Outcome:
    try:
        hold = longest_call(container)  # nobody may take the job over while the answer can still come
        claim.write(**FOUND, intent_ms=slot.at_ms, durable_within=DURABLE_WITHIN, hold=hold)
    except ConflictError:
        give_back(container.budget, slot)
        raise
    except NotDurableError as error:
        give_back(container.budget, slot)
        return Retry(
            JobError(
                code="store_not_durable",
                stage=Stage.SUBMIT,
                message=f"Nothing was submitted: {error}",
                action="Check the disk of the Redis server, and its replicas where FINETUNE_REDIS_REPLICAS is set.",
                retryable=True,
            ),
            fields=UNSENT,
            outage=True,
        )
    try:
        reply = call_api(container.budget, slot, partial(client.submit, training_request(claim.job)))
    except AccountPausedError as paused:
        return replace(park_paused(claim.job, CallClass.SUBMIT, paused, "submit"), fields=UNSENT)
    except StaleCallError:
        return Wait(
            "parked: this worker stalled before the submit, so it did not send it",
            WaitReason.API_SLOT,
            1.0,
            fields=UNSENT,
        )
    except Rejected as error:
        return Fail(from_api(error, Stage.SUBMIT), fields=UNSENT)
    except OutcomeUnknown as error:
        log.warning("submit_outcome_unknown", code=error.code, detail=error.detail)
        # An unclear answer may be this job's own doing, so it uses an attempt; an outage uses none.
        tried = claim.job.attempts + (error.code in {"unclear_status", "unreadable_reply"})
        return _look_for_it(container, claim.job, error.detail, attempts=tried)
    return _accepted(claim.job, reply)


def _never_found(container: Container, job: JobRecord) -> Attention:
    hours = container.settings.finetune_training_limit / 3600
    if job.candidates:
        left = ", ".join(job.candidates[:3])
        trainings = f"{len(job.candidates)} trainings"
        said = f"after {hours:g} h it is still unclear whether one of {trainings} is this job's: {left}"
    else:
        said = f"in {hours:g} h no complete list could be read from Segmind: nobody knows whether the training exists"
    return Attention(f"needs attention: {said}", said)


def _accepted(job: JobRecord, reply: SubmitReply) -> Done:
    structlog.contextvars.bind_contextvars(finetune_id=reply.finetune_id)
    return Done(
        f"submitted: training {reply.finetune_id}",
        to=JobState.TRAINING,
        own=reply.finetune_id,
        fields={**trained_by(reply.finetune_id, job), "provider_status": reply.status},
    )


def _look_for_it(container: Container, job: JobRecord, why: str, **fields: int) -> Wait:
    """Wait for the sweeps to say whether the submit reached Segmind."""
    try:
        container.sweep_clock.sweep_now(job.account)
    except RedisError as error:
        log.warning("sweep_not_hastened", error=str(error))
    return Wait(
        f"outcome of the submit unknown ({why}): looking for the training in Segmind's list, not sending again",
        WaitReason.PROVIDER,
        container.settings.finetune_unseen_limit,
        fields={"evidence": job.with_evidence(f"the submit's outcome is unknown: {why}"), **fields},
    )
