"""Changing a job: ``cancel``, ``retry`` and ``access``."""

from finetune_queue.cli import output
from finetune_queue.cli.output import ExitCode
from finetune_queue.cli.session import open_queue
from finetune_queue.contract import JobState


def cancel(job_id: str, *, as_json: bool) -> ExitCode:
    """Stop a job, and say what that does not stop."""
    with open_queue() as queue:
        job = queue.cancel(job_id)
    if as_json:
        output.emit(job.as_dict())
        return ExitCode.OK
    if job.state is JobState.CANCELLED:
        output.say(f"Job {job.id} is cancelled.")
    else:
        output.say(f"The worker that holds job {job.id} was asked to stop it. See: {output.program()} watch {job.id}")
    if job.record.finetune_id is not None:
        output.say("Segmind's training goes on and is paid: its API has no cancel.")
    elif job.record.intent_ms is not None:
        output.say("A submit was on its way: Segmind may have started, and charged, a training.")
    return ExitCode.OK


def retry(job_id: str, *, as_json: bool) -> ExitCode:
    """Resume a failed job at the stage that failed."""
    with open_queue() as queue:
        job = queue.retry(job_id)
    if as_json:
        output.emit(job.as_dict())
    else:
        output.say(f"Job {job.id} goes on with: {job.state}.")
        output.say(f"Follow it: {output.program()} watch {job.id}")
    return ExitCode.OK


def access(job_id: str, *, public: bool, as_json: bool) -> ExitCode:
    """Have the model of an ended job made public or private."""
    with open_queue() as queue:
        job = queue.set_public(job_id, public)
    if as_json:
        output.emit(job.as_dict())
    else:
        output.say(f"The model of job {job.id} will be made {'public' if public else 'private'}, by one API call.")
        output.say(f"See: {output.program()} status {job.id}")
    return ExitCode.OK
