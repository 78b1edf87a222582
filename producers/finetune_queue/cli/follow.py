"""Following one job: the looks at it until it has ended."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

from finetune_queue.cli import output, words
from finetune_queue.cli.output import CliError, ExitCode
from finetune_queue.contract import Event, JobState
from finetune_queue.errors import QueueUnavailableError, WaitTimeoutError
from finetune_queue.sdk import FOLLOW_EVERY, FineTuneQueue, Job, Waiting


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A job at one look. ``trouble`` says why the look itself failed; then the rest is from the look before.

    ``stranded``: it has not ended, and no worker is there to go on with it.
    """

    job: Job
    events: tuple[Event, ...]
    waiting: Waiting | None
    trouble: str | None = None
    stranded: bool = False


Show = Callable[[Snapshot], None]


def look(queue: FineTuneQueue, job: Job) -> Snapshot:
    """Read the job again, all of its events, why it waits and whether anybody is there to go on with it."""
    job.refresh()
    stranded = not job.done and not queue.workers()
    return Snapshot(job, tuple(queue.events(job.id)), queue.waiting(job), stranded=stranded)


def snapshots(queue: FineTuneQueue, job: Job, timeout: float | None) -> Iterator[Snapshot]:
    """Look again and again until the job has ended. While Redis is out of reach it goes on looking.

    Raises:
        WaitTimeoutError: the job had not ended after ``timeout`` seconds.
    """
    end = None if timeout is None else time.monotonic() + timeout
    seen = look(queue, job)
    while True:
        yield seen
        if seen.trouble is None and seen.job.done and len(seen.events) >= seen.job.record.event_seq:
            return
        if end is not None and time.monotonic() >= end:
            message = f"Job {job.id} was still {seen.job.state} after {words.duration(timeout or 0)}."
            raise WaitTimeoutError(message)
        time.sleep(FOLLOW_EVERY)
        try:
            seen = look(queue, seen.job)
        except QueueUnavailableError as error:
            seen = replace(seen, trouble=str(error))


def follow(queue: FineTuneQueue, job: Job, *, timeout: float | None, show: AbstractContextManager[Show]) -> Snapshot:
    """Show the job until it has ended and return the last look.

    Raises:
        WaitTimeoutError: the job had not ended after ``timeout`` seconds.
    """
    with show as shown:
        for seen in snapshots(queue, job, timeout):
            shown(seen)
    return seen


@contextmanager
def ctrl_c_leaves(job: Job) -> Iterator[None]:
    """Turn Ctrl-C, and the end of the time to wait, into an error that says that the job goes on, or what it needs.

    Raises:
        CliError: interrupted, or a time-out.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise CliError(goes_on(job), ExitCode.INTERRUPTED, "interrupted", job_id=job.id) from None
    except WaitTimeoutError as error:
        raise CliError(f"{error} {goes_on(job)}", ExitCode.TIMEOUT, "timeout", job_id=job.id) from None


def goes_on(job: Job) -> str:
    """Say that nothing was lost, and how to look again; of a job that stands still, what it needs."""
    if job.state is JobState.NEEDS_ATTENTION:
        return f"It waits until a person says whether the submit reached Segmind: {how_to_resolve(job.id)}."
    return f"The job goes on. Follow it: {output.program()} watch {job.id}"


def how_to_resolve(job_id: str) -> str:
    """Say by which commands a job that needs attention goes on."""
    command = f"{output.program()} resolve {job_id}"
    return (
        f"`{command} --adopt FINETUNE_ID` if Segmind has its training, "
        f"`{command} --resubmit` if it certainly has none: that is charged again"
    )
