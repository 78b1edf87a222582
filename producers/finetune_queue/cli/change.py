"""Changing jobs: ``cancel``, ``retry`` and ``access``."""

from collections.abc import Callable, Sequence

from finetune_queue.cli import output
from finetune_queue.cli.output import ExitCode
from finetune_queue.cli.session import open_queue
from finetune_queue.contract import JobState
from finetune_queue.errors import NotPossibleError, UnknownJobError
from finetune_queue.sdk import FineTuneQueue, Job


def cancel(job_ids: Sequence[str], *, as_json: bool) -> ExitCode:
    """Stop jobs, and say what that does not stop."""
    return _each(job_ids, FineTuneQueue.cancel, _say_cancelled, as_json=as_json)


def retry(job_ids: Sequence[str], *, as_json: bool) -> ExitCode:
    """Resume failed jobs, each at the stage that failed."""
    return _each(job_ids, FineTuneQueue.retry, _say_retried, as_json=as_json)


def _each(
    job_ids: Sequence[str],
    act: Callable[[FineTuneQueue, str], Job],
    say: Callable[[Job], None],
    *,
    as_json: bool,
) -> ExitCode:
    """Do it to each of the jobs. One that is not there, or whose state does not allow it, stops none of the others;
    the first such gives the exit code."""
    code = ExitCode.OK
    with open_queue() as queue:
        for job_id in job_ids:
            try:
                job = act(queue, job_id)
            except (UnknownJobError, NotPossibleError) as error:
                said = output.refused(error, as_json=as_json)
                code = code or said
                continue
            if not as_json:
                say(job)
            elif len(job_ids) == 1:
                output.emit(job.as_dict())
            else:
                output.emit_line(job.as_dict())
    return code


def _say_cancelled(job: Job) -> None:
    if job.state is JobState.CANCELLED:
        output.say(f"Job {job.id} is cancelled.")
    else:
        output.say(f"The worker that holds job {job.id} was asked to stop it. See: {output.program()} watch {job.id}")
    if job.record.finetune_id is not None:
        output.say("Segmind's training continues and is still charged: its API has no cancel.")
    elif job.record.intent_ms is not None:
        output.say("A submit was on its way: Segmind may have started, and charged for, a training.")


def _say_retried(job: Job) -> None:
    output.say(f"Job {job.id} goes on with: {job.state}.")
    output.say(f"Follow it: {output.program()} watch {job.id}")


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
