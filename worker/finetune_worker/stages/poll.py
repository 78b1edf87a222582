"""Poll: where a job waits for its training, or for its model's deployment. The account's sweeps look at it; this stage
asks for the details of its training alone where a sweep does not show enough, or has not seen it for long."""

from finetune_queue.contract import EventType, JobError, JobRecord, JobState, Stage, WaitReason
from finetune_queue.store import UNKNOWN_STATUSES, CallClass
from finetune_worker.container import Container
from finetune_worker.segmind.models import FinetuneDetails
from finetune_worker.stages.calls import ask
from finetune_worker.stages.claim import Claim, until_deadline
from finetune_worker.stages.observe import observe
from finetune_worker.stages.outcome import Done, Fail, Outcome, Retry, Wait


def poll(container: Container, claim: Claim) -> Outcome:
    """Wait for Segmind, with one look at the job's details where the list is not enough."""
    job = claim.job
    over = training_time_left(container, job, claim.now_ms) <= 0
    unseen = claim.now_ms - job.entered_ms >= container.settings.finetune_unseen_limit * 1000
    if not (over or unseen or job.wants_details):
        return _wait(container, claim)
    what = "ask for the training's details"
    seen = ask(container, claim, CallClass.FINISH, what, lambda client: client.details(job.finetune_id or ""))
    if not isinstance(seen, FinetuneDetails):
        return seen
    outcome = _act_on(container, claim, seen)
    if outcome is not None:
        return outcome
    if over:  # judged by a fresh look: it may have ended while nobody could look, or was adopted late
        return Fail(_too_long(container, claim.job))
    return _wait(container, claim, wants_details=False, outages=0, error=None)


def _act_on(container: Container, claim: Claim, seen: FinetuneDetails) -> Outcome | None:
    """Write down what is new in the training's details, and return the outcome that follows; None if it still runs."""
    job = claim.job
    found = observe(job, seen)
    if found.unknown_status:
        container.counters.add(UNKNOWN_STATUSES)
    if found.to is JobState.FAILED:
        return Fail(found.fields["error"], fields=found.fields)
    if found.to is not None:
        return Done(f"trained: {seen.status}", to=found.to, fields=found.fields)
    if found.fields.get("deployed"):
        return Done("deployed for inference", fields=found.fields)
    if found.fields:
        claim.write(event=EventType.PROGRESS, **found.fields)
    if (seen.trained or seen.failed) and job.state is JobState.TRAINING:
        return Retry(_weights_missing(seen))
    return None


def training_time_left(container: Container, job: JobRecord, now_ms: int) -> float:
    """Return the seconds from ``now_ms``, by the Redis server's clock, until the job's training, or its deployment,
    counts as one that never ends. A retry, which waits for the same training, gives it as long again."""
    return container.settings.finetune_training_limit - (now_ms - job.entered_ms) / 1000


def look_again_in(container: Container, job: JobRecord, now_ms: int) -> float:
    """Return the seconds until the job is looked at alone, if no sweep sees it before."""
    left = training_time_left(container, job, now_ms)
    return until_deadline(job, min(container.settings.finetune_unseen_limit, left))


def _wait(container: Container, claim: Claim, **fields: object) -> Wait:
    job = claim.job
    what = "deploy" if job.state is JobState.DEPLOYING else "train"
    sentence = f"parked: waiting for Segmind to {what} {job.finetune_id} ({job.provider_status or 'no status yet'})"
    return Wait(sentence, WaitReason.PROVIDER, look_again_in(container, job, claim.now_ms), fields=fields)


def _weights_missing(seen: FinetuneDetails) -> JobError:
    said = f" ({seen.error_message})" if seen.error_message else ""
    return JobError(
        code="weights_missing",
        stage=Stage.POLL,
        message=f"The training was over, but Segmind says {seen.status}{said} and gives no URL of the weights.",
        action="Look at the fine-tune in Segmind's console. `finetune retry JOB` asks for the same training again at "
        "no cost; only a new request submits, and pays for, a new one.",
        retryable=True,
    )


def _too_long(container: Container, job: JobRecord) -> JobError:
    hours = container.settings.finetune_training_limit / 3600
    over = "deployed" if job.state is JobState.DEPLOYING else "over"
    return JobError(
        code="training_too_long",
        stage=Stage.POLL,
        message=f"Training {job.finetune_id} was not {over} after {hours:g} h (last status {job.provider_status}).",
        action="Look at it in Segmind's console. `finetune retry JOB` goes on waiting for the same training.",
    )
