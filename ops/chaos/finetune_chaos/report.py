"""The result for people: one table, and the evidence of whatever was wrong."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from finetune_chaos.history import History

SHOWN = 20
"""Sentences of evidence shown for each promise."""

Row = tuple[str, int, str]
"""A name, a number and its details."""


def print_result(history: History, verdict: Mapping[str, Sequence[str]], console: Console) -> None:
    """Print the table and the evidence."""
    title = f"Chaos, seed {history.seed}, {history.seconds / 60:g} min"
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=SIMPLE_HEAD)
    for justify in ("left", "right", "left"):
        table.add_column(justify=justify, overflow="fold")
    for part in (outcomes(history), faults(history)):
        for name, number, details in part:
            table.add_row(name, f"{number:,}", details)
        table.add_section()
    for name, evidence in verdict.items():
        table.add_row(name, f"{len(evidence):,}", "", style="bold red" if evidence else "green")
    console.print(table)
    for name, evidence in verdict.items():
        for sentence in evidence[:SHOWN]:
            console.print(f"{name}: {sentence}", markup=False, highlight=False, soft_wrap=True, style="red")
        if len(evidence) > SHOWN:
            console.print(f"{name}: and {len(evidence) - SHOWN} more", style="red")


def outcomes(history: History) -> list[Row]:
    """Return what came of the jobs."""
    states = Counter(job.state for job in history.jobs.values())
    codes = Counter(job.error.partition(":")[0] for job in history.jobs.values() if job.state == "failed")
    why = {"failed": ", ".join(f"{code} {count}" for code, count in codes.most_common())}
    retried = sum(history.asked_to_retry.values())
    deliveries = sum(len(sink.got) for sink in history.sinks)
    return [
        ("jobs promised", len(history.promises), f"and {len(history.poisoned)} messages that cannot become jobs"),
        *((f"  {state}", count, why.get(state, "")) for state, count in states.most_common()),
        ("raw requests sent again", len(history.sent_again), "lost between the broker and a worker that died"),
        ("trainings paid", len(history.trainings), f"{retried} retries, {history.resolved} resolved by hand"),
        ("API calls", sum(account.calls for account in history.accounts), _limits(history)),
        ("events", len(history.stream), f"{deliveries:,} deliveries to {len(history.sinks)} sinks"),
    ]


def faults(history: History) -> list[Row]:
    """Return what went wrong, by what it happened to."""
    groups: dict[str, dict[str, int]] = {}
    for kind, count in sorted(history.fired.items()):
        group, _, rest = kind.partition(" ")
        groups.setdefault(group, {})[rest] = count
    return [
        ("faults", sum(history.fired.values()), f"of {sum(map(bool, history.fired.values()))} kinds"),
        *(
            (f"  {group}", sum(kinds.values()), "; ".join(f"{kind} {count}" for kind, count in kinds.items()))
            for group, kinds in groups.items()
        ),
    ]


def as_dict(history: History, verdict: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the result as JSON."""
    return {
        "seed": history.seed,
        "minutes": history.seconds / 60,
        "cores": os.cpu_count(),
        "outcomes": outcomes(history),
        "faults": faults(history),
        "evidence": {name: list(evidence) for name, evidence in verdict.items()},
    }


def _limits(history: History) -> str:
    return ", ".join(
        f"{account.name}: at most {account.most_in_window} of {account.limit} in a window"
        for account in history.accounts
    )
