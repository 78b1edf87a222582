"""Showing a job that is followed: as a live picture on a terminal, as lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime

from finetune_queue.cli import output, words
from finetune_queue.cli.follow import Show, Snapshot
from finetune_queue.cli.timeline import detail, event_line
from finetune_queue.contract import JobState
from finetune_queue.plain_words import byte_size

PROGRESS_EVERY = 5.0
"""Seconds between two plain lines about the progress of one step."""


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
            self._once(now, seen, words.still_trying(seen.trouble))
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
        whole = f" of {byte_size(progress.total)}" if progress.total is not None else ""
        self._say(now, seen, seen.job.state, f"{byte_size(progress.done)}{whole}")

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
