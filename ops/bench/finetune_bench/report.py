"""Results for people: a table in the terminal, and the same in Markdown."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from finetune_bench.cases import Case
from finetune_bench.contestants import CONTESTANTS
from finetune_bench.measures import Result

COLUMNS = (
    "contestant",
    "finished",
    "of the shortest time",
    "of the ceiling",
    "calls per job",
    "429s",
    "notice, s",
    "most calls in a window",
    "memory, MB",
)


BACKLOG_ALONE = "of the ceiling"


def cells(result: Result) -> tuple[str, ...]:
    """Return one result as the cells of its row."""
    return (
        CONTESTANTS[result.contestant].title,
        f"{result.finished} of {result.jobs}",
        _number(result.of_shortest, 2),
        _number(result.of_ceiling, 2),
        _number(result.calls_per_job, 2),
        f"{result.rejected:,}",
        _number(result.notice, 1),
        f"{result.most_calls_in_window:,} of {result.limit}",
        f"{result.memory / 1e6:.0f}",
    )


def print_case(case: Case, results: Iterable[Result], console: Console) -> None:
    """Print a case's results."""
    _print(case.title, *_table(case, results), console)


def _print(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print a table that can be read at 80 columns: figures are never broken, heads between words only."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    for number, (name, *cells) in enumerate(zip(heads, *rows, strict=True)):
        widest = max(map(len, [*cells, *name.split()]))
        if number:
            table.add_column(name, justify="right", width=widest)
        else:
            table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()


def _table(case: Case, results: Iterable[Result]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and rows of a case's table, with the columns that it has."""
    shown = [number for number, name in enumerate(COLUMNS) if case.backlog or name != BACKLOG_ALONE]
    rows = [cells(result) for result in results]
    return [COLUMNS[number] for number in shown], [[row[number] for number in shown] for row in rows]


def print_rows(title: str, rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print rows of figures that name their columns."""
    _print(title, _heads(rows), list(map(_cells_of, rows)), console)


def markdown_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of figures that name their columns in Markdown."""
    return f"**{title}**\n\n{markdown_table(_heads(rows), map(_cells_of, rows))}"


def _heads(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name.replace("_", " ") for name in rows[0]]


def _cells_of(row: Mapping[str, Any]) -> list[str]:
    return [f"{each:,}" if isinstance(each, int | float) else str(each) for each in row.values()]


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, its first column to the left and the others to the right."""
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def markdown(case: Case, results: Iterable[Result]) -> str:
    """Return a case's results in Markdown."""
    return f"**{case.title}**\n\n{markdown_table(*_table(case, results))}"


def machine() -> dict[str, Any]:
    """Return what the run ran on, and how much else ran there: figures without it mean little."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
