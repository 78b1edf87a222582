"""A job's steps drawn for a terminal: still, or moving as long as the job does."""

from datetime import UTC, datetime

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from finetune_queue.cli import words
from finetune_queue.cli.follow import Snapshot
from finetune_queue.cli.timeline import Mark, Step, steps
from finetune_queue.plain_words import byte_size

_MARKS: dict[Mark, str] = {"done": "✓", "now": ">", "bad": "✗", "attention": "!", "todo": "·"}
_ASCII_MARKS: dict[Mark, str] = {"done": "+", "now": ">", "bad": "x", "attention": "!", "todo": "."}
_STYLES: dict[Mark, str] = {
    "done": "green",
    "now": "bold cyan",
    "bad": "bold red",
    "attention": "yellow",
    "todo": "dim",
}
_BAR = 20


class Picture:
    """What ``Console.print`` and ``Live`` take; drawn anew each time, so that the times move."""

    def __init__(self, seen: Snapshot | None = None, *, moving: bool = False) -> None:
        self._seen = seen
        self._moving = moving
        self._spinners = {name: Spinner(name, style="cyan") for name in ("dots", "line")}

    def update(self, seen: Snapshot) -> None:
        """Draw this look from now on."""
        self._seen = seen

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw one line for each step."""
        seen = self._seen
        if seen is None:
            return
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True, min_width=6)
        table.add_column(overflow="fold")
        for step in steps(seen.job.record, seen.events, seen.waiting, datetime.now(UTC), stranded=seen.stranded):
            mark = self._mark(step.mark, ascii_only=options.ascii_only)
            state = Text(step.state, style=_STYLES[step.mark])
            elapsed = Text("" if step.seconds is None else words.duration(step.seconds), style="dim")
            table.add_row(mark, state, elapsed, Padding(_detail(step, seen), (0, 0, 0, 1)))
        yield table
        if seen.trouble is not None:
            yield Text(words.still_trying(seen.trouble), style="yellow")

    def _mark(self, mark: Mark, *, ascii_only: bool) -> RenderableType:
        if mark == "now" and self._moving:
            return self._spinners["line" if ascii_only else "dots"]
        return Text(_ASCII_MARKS[mark] if ascii_only else _MARKS[mark], style=_STYLES[mark])


def _detail(step: Step, seen: Snapshot) -> RenderableType:
    text = Text(step.detail, style="dim" if step.mark == "done" else "")
    progress = seen.job.record.progress
    if step.mark != "now" or progress is None:
        return text
    if progress.total is None:
        return Text(f"{byte_size(progress.done)}  {step.detail}".rstrip())
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=progress.total, completed=progress.done, width=_BAR),
        Text(f"{byte_size(progress.done)} of {byte_size(progress.total)}", no_wrap=True),
        text,
    )
    return bar
