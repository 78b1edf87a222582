"""``finetune watch``: one job until it has ended, or all that happens on the queue until Ctrl-C."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from finetune_queue.cli import output, words
from finetune_queue.cli.follow import ctrl_c_leaves, snapshots
from finetune_queue.cli.output import ExitCode
from finetune_queue.cli.session import open_queue
from finetune_queue.cli.show import job_json
from finetune_queue.cli.submit import stay
from finetune_queue.cli.summary import exit_code
from finetune_queue.cli.table import jobs_table, lines_each
from finetune_queue.cli.timeline import detail
from finetune_queue.contract import JobState
from finetune_queue.errors import QueueUnavailableError
from finetune_queue.sdk import FineTuneQueue, Job, Waiting

if TYPE_CHECKING:
    from rich.console import RenderableType

LOOK_EVERY = 1.0
"""Seconds between two looks at the whole queue."""

PIPED = 50
"""The newest jobs that are looked at where no terminal's height says how many."""

Rows = list[tuple[Job, Waiting | None]]


def watch_job(job_id: str, *, timeout: float | None, as_json: bool) -> ExitCode:
    """Follow one job to its end. As JSON: the job, a line each time that it changed.

    Raises:
        CliError: the wait ended before the job did.
    """
    with open_queue() as queue:
        job = queue.get(job_id)
        if not as_json:
            return stay(queue, job, timeout=timeout, as_json=False)
        version = -1
        with ctrl_c_leaves(job):
            for seen in snapshots(queue, job, timeout):
                if seen.job.record.version != version:
                    version = seen.job.record.version
                    output.emit_line(job_json(seen.job, seen.waiting))
        return exit_code(seen.job.state)


def watch_all(*, as_json: bool) -> NoReturn:
    """Show the newest jobs until Ctrl-C: a live table on a terminal, elsewhere a line for each change."""
    with open_queue() as queue:
        if not as_json and output.out().is_interactive:
            _live_table(queue)
        versions: dict[str, int] = {}
        trouble: str | None = None
        stranded = False
        views = _views(queue, lambda: PIPED)
        while True:
            view = next(views)
            if view.trouble is not None and trouble is None:  # once for an outage, not at every look
                output.note(words.still_trying(view.trouble))
            trouble = view.trouble
            if trouble is not None:
                continue
            if view.stranded and not stranded:
                output.note(words.NO_WORKERS)
            stranded = view.stranded
            for job, waiting in reversed(view.rows):
                if versions.get(job.id) != job.record.version:
                    _tell(job, waiting, as_json=as_json)
            versions = {job.id: job.record.version for job, _ in view.rows}


def _tell(job: Job, waiting: Waiting | None, *, as_json: bool) -> None:
    if as_json:
        output.emit_line(job_json(job, waiting))
        return
    name = words.printable(job.record.request.name)
    output.say(f"{job.id}  {job.state:<15}  {name}  {detail(job.record, waiting)}".rstrip())


@dataclass(frozen=True, slots=True)
class _View:
    """The newest jobs and how many there are in each state; ``stranded``: no worker is there; ``trouble`` says why the
    look failed."""

    rows: Rows
    counts: dict[JobState, int]
    stranded: bool
    trouble: str | None = None


def _views(queue: FineTuneQueue, limit: Callable[[], int]) -> Iterator[_View]:
    """Look for ever. What fails at the first look is raised; later a Redis that is away is waited for."""
    view = _look(queue, limit())
    while True:
        yield view
        time.sleep(LOOK_EVERY)
        try:
            view = _look(queue, limit())
        except QueueUnavailableError as error:
            view = replace(view, trouble=str(error))


def _look(queue: FineTuneQueue, limit: int) -> _View:
    rows = [(job, queue.waiting(job)) for job in queue.list(limit=limit)]
    return _View(rows, queue.counts(), stranded=not queue.workers())


def _live_table(queue: FineTuneQueue) -> NoReturn:
    from rich.live import Live

    console = output.out()

    def room() -> int:
        return max(5, (console.height - _AROUND) // lines_each(console.width))

    views = _views(queue, room)
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            live.update(_picture(next(views), width=console.width), refresh=True)


_AROUND = 7
"""Lines above and below the jobs of the table."""


def _picture(view: _View, *, width: int) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    head = "  ".join(f"{state} {count}" for state, count in view.counts.items() if count) or "no jobs yet"
    parts: list[RenderableType] = [Text(head, style="bold"), Text()]
    if view.stranded:
        parts += [Text(words.NO_WORKERS, style="yellow"), Text()]
    if view.rows:
        parts += [jobs_table(view.rows, width=width), Text()]
    if view.trouble is not None:
        parts.append(Text(words.still_trying(view.trouble), style="yellow"))
    else:
        parts.append(Text("Ctrl-C ends this view; the jobs go on.", style="dim"))
    return Group(*parts)
