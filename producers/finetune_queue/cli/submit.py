"""``finetune submit``: put a request on the queue, and stay with it if asked."""

from contextlib import suppress
from datetime import UTC, datetime

from finetune_queue import tracing
from finetune_queue.cli import output, words
from finetune_queue.cli.display import display
from finetune_queue.cli.follow import ctrl_c_leaves, follow, snapshots
from finetune_queue.cli.output import CliError, ExitCode
from finetune_queue.cli.session import note_default_staging, open_queue
from finetune_queue.cli.summary import exit_code, print_summary
from finetune_queue.contract import FineTuneRequest, JobState
from finetune_queue.contract.dataset_url import is_url
from finetune_queue.errors import QueueUnavailableError
from finetune_queue.sdk import FineTuneQueue, Job
from finetune_queue.settings import Settings, load_settings


def submit(request: FineTuneRequest, *, wait: bool, timeout: float | None, as_json: bool) -> ExitCode:
    """Submit the request; with ``wait`` stay until the job has ended, at most ``timeout`` seconds.

    Raises:
        SettingsError, FineTuneQueueError, DatasetError, CliError: it was not submitted, or the wait ended early.
    """
    settings = load_settings()
    with open_queue(settings) as queue, tracing.running("finetune-cli"):
        try:
            job = queue.submit(request if as_json else _staged(request, settings))
        except KeyboardInterrupt:
            message = f"The request may be on the queue already; see: {output.program()} list --limit 3"
            raise CliError(message, ExitCode.INTERRUPTED, "interrupted") from None
        note_default_staging(settings, job.record.request.dataset)
        if wait:
            return stay(queue, job, timeout=timeout, as_json=as_json)
        if as_json:
            output.emit(job.as_dict())
        elif job.state is JobState.ACCEPTED:
            output.say(f"Job {job.id} is on the queue.")
            output.say(f"Follow it: {output.program()} watch {job.id}")
            with suppress(QueueUnavailableError):  # it is submitted, whatever the look at the workers comes to
                if not queue.workers():
                    output.say(f"Note: {words.NO_WORKER}.")
        else:  # the idempotency key found a job from before
            output.say(f"Job {job.id} was submitted before and {job.state.sentence}.")
        return ExitCode.OK


def _staged(request: FineTuneRequest, settings: Settings) -> FineTuneRequest:
    """Stage a local dataset, as the SDK would, and say what trains badly: it is about to be paid for."""
    if is_url(request.dataset) or request.expired(datetime.now(UTC)):  # of what comes too late it is the SDK to judge
        return request
    # Imported late: packing needs Pillow, which a URL does not.
    from finetune_queue.staging import stage_checked

    texts = {"trigger_word": request.trigger_word, "instance_prompt": request.instance_prompt}
    url, report = stage_checked(request.dataset, settings, **texts)
    for line in words.report_warnings(report.model_dump(mode="json")):
        output.note(f"Warning: {line}")
    return request.model_copy(update={"dataset": url})


def stay(queue: FineTuneQueue, job: Job, *, timeout: float | None, as_json: bool) -> ExitCode:
    """Follow the job to its end and say what came of it. As JSON that is one document, also when the wait ends early.

    Raises:
        CliError: the wait ended before the job did.
    """
    with ctrl_c_leaves(job):
        if as_json:
            try:
                for seen in snapshots(queue, job, timeout):
                    job = seen.job
            finally:
                output.emit(job.as_dict())
        else:
            output.say(f"Job {job.id}")
            seen = follow(queue, job, timeout=timeout, show=display())
            job = seen.job
            print_summary(seen)
    return exit_code(job.state)
