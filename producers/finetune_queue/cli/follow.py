"""Following one job: the looks at it, and the two ways to show them, a live display or plain lines."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from finetune_queue.cli import output, words
from finetune_queue.cli.output import CliError, ExitCode
from finetune_queue.cli.timeline import detail, event_line
from finetune_queue.contract import Event, JobState
from finetune_queue.errors import QueueUnavailableError, WaitTimeoutError
from finetune_queue.sdk import FOLLOW_EVERY, FineTuneQueue, Job, Waiting

PROGRESS_EVERY = 5.0
"""Seconds between two plain lines about the progress of one step."""


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
    """Read the job, all of its events, why it waits and whether anybody is there to go on with it."""
    job = queue.get(job.id)
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
    """End the command at Ctrl-C, or when the time is up, with the word that the job goes on.

    Raises:
        CliError: that word, with its exit code.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise CliError(goes_on(job.id), ExitCode.INTERRUPTED, "interrupted", job_id=job.id) from None
    except WaitTimeoutError as error:
        raise CliError(f"{error} {goes_on(job.id)}", ExitCode.TIMEOUT, "timeout", job_id=job.id) from None


def goes_on(job_id: str) -> str:
    """Say that nothing was lost, and how to look again."""
    return f"The job goes on. Follow it: {output.program()} watch {job_id}"


def display() -> AbstractContextManager[Show]:
    """Return the display that suits standard output: live on a terminal, lines elsewhere."""
    return live() if output.out().is_interactive else plain()


@contextmanager
def live() -> Iterator[Show]:
    """Redraw the steps in place, as long as the block lasts."""
    from rich.live import Live

    from finetune_queue.cli.picture import Picture

    picture = Picture(moving=True)
    with Live(picture, console=output.out(), refresh_per_second=10, vertical_overflow="visible"):
        yield picture.update


@contextmanager
def plain() -> Iterator[Show]:
    """Print a line for everything new, for logs and pipes."""
    yield _Lines().update


class _Lines:
    """Prints each event once, and between events what the job waits for and how far it is."""

    def __init__(self) -> None:
        self._told = 0
        self._last = ""
        self._progress_at = 0.0

    def update(self, seen: Snapshot) -> None:
        for event in seen.events[self._told :]:
            state, text = str(event.data.get("state", "")), event_line(event)
            self._say(event.time, seen, state, text)
            self._last = f"{state} {text}"
        self._told = len(seen.events)
        now = datetime.now(UTC)
        if seen.trouble is not None:
            self._once(now, seen, f"Redis does not answer; still trying. {words.printable(seen.trouble)}")
            return
        if seen.job.done:
            return
        self._once(now, seen, detail(seen.job.record, seen.waiting, stranded=seen.stranded))
        self._progress(now, seen)

    def _progress(self, now: datetime, seen: Snapshot) -> None:
        progress = seen.job.record.progress
        if progress is None or time.monotonic() < self._progress_at + PROGRESS_EVERY:
            return
        self._progress_at = time.monotonic()
        whole = f" of {words.size(progress.total)}" if progress.total is not None else ""
        self._say(now, seen, seen.job.state, f"{words.size(progress.done)}{whole}")

    def _once(self, now: datetime, seen: Snapshot, text: str) -> None:
        # The estimate at the end changes with every look and is no news.
        key = f"{seen.job.state} {text.partition(', about ')[0]}"
        if text and key != self._last:
            self._say(now, seen, seen.job.state, text)
        self._last = key

    @staticmethod
    def _say(moment: datetime, seen: Snapshot, state: JobState | str, text: str) -> None:
        passed = (moment - seen.events[0].time).total_seconds() if seen.events else 0.0
        output.say(f"{words.duration(passed):>8}  {state:<15}  {text}".rstrip())
