"""The table of jobs on a terminal, of ``list`` and ``watch``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_queue.cli import words
from finetune_queue.cli.timeline import detail
from finetune_queue.contract import JobState
from finetune_queue.sdk import Job, Waiting

if TYPE_CHECKING:
    from rich.text import Text

STATE_STYLES = {
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
    JobState.NEEDS_ATTENTION: "yellow",
}

_WIDE = 150
"""Columns from which what a job is doing, or why it waits, fits beside the job."""

_LONGEST_NAME = 24
_SHORTEST_NAME = 8
_GAP = "  "


def lines_each(width: int) -> int:
    """Return the lines that a job takes at most on a terminal of this many columns."""
    return 1 if width >= _WIDE else 2


def jobs_table(rows: Sequence[tuple[Job, Waiting | None]], *, width: int) -> "Text":
    """Return the jobs for a terminal of ``width`` columns: each with its whole id, its state and, after these or on a
    line of its own, what it is doing or why it waits. Where it is narrow, the name goes first, then the age."""
    from rich.text import Text

    records = [job.record for job, _ in rows]
    ids = _column("JOB", [Text(job.id) for job, _ in rows])
    states = _column("STATE", [Text(job.state, STATE_STYLES.get(job.state, "cyan")) for job, _ in rows])
    ages = _column("AGE", [Text(words.since(record.created_ms)) for record in records], right=True)
    names = _column("NAME", [Text(words.printable(record.request.name)) for record in records])
    shown = [ids, states]
    if (used := _width([*shown, ages])) <= width:
        shown.append(ages)
        beside = lines_each(width) == 1
        room = min(_LONGEST_NAME if beside else width, width - used - len(_GAP), names[0].cell_len)
        if room >= min(_SHORTEST_NAME, names[0].cell_len):
            for name in names:
                name.rstrip()
                name.truncate(room, overflow="ellipsis", pad=True)
            shown.append(names)
    lines = [Text(_GAP).join(cells) for cells in zip(*shown, strict=True)]
    said = ["", *(detail(job.record, waiting) for job, waiting in rows)]
    table = [part for line, text in zip(lines, said, strict=True) for part in _with(line, text, width)]
    for line in table:
        line.rstrip()
        line.truncate(width, overflow="ellipsis")
    return Text("\n", no_wrap=True).join(table)


def _column(head: str, cells: "list[Text]", *, right: bool = False) -> "list[Text]":
    """Return the cells under their head, all of one width."""
    from rich.text import Text

    column = [Text(head, "bold"), *cells]
    widest = max(cell.cell_len for cell in column)
    for cell in column:
        cell.align("right" if right else "left", widest)
    return column


def _width(columns: "list[list[Text]]") -> int:
    return sum(column[0].cell_len for column in columns) + len(_GAP) * (len(columns) - 1)


def _with(line: "Text", said: str, width: int) -> "list[Text]":
    """Return a job's line with what is said of it, or this on a second line."""
    from rich.text import Text

    addition = Text(_GAP + said, "dim")
    if not said:
        return [line]
    return [line + addition] if lines_each(width) == 1 else [line, addition]
