"""The result for people: one table, and the evidence of whatever was wrong."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from finetune_chaos.history import History

SHOWN = 20
"""Sentences of evidence shown for each promise."""


def print_result(history: History, verdict: Mapping[str, Sequence[str]], console: Console) -> None:
    """Print the table and the evidence."""
    table = Table(title=f"Chaos, seed {history.seed}, {history.seconds / 60:g} min", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("", overflow="fold")
    for name, value, more in rows(history, verdict):
        table.add_row(name, value, more)
    console.print(table)
    for name, evidence in verdict.items():
        for sentence in evidence[:SHOWN]:
            console.print(f"{name}: {sentence}", markup=False, highlight=False, soft_wrap=True, style="red")
        if len(evidence) > SHOWN:
            console.print(f"{name}: and {len(evidence) - SHOWN} more", style="red")


def rows(history: History, verdict: Mapping[str, Sequence[str]]) -> list[tuple[str, str, str]]:
    """Return the table's rows: name, number, details."""
    outcomes = Counter(job.state for job in history.jobs.values())
    why = {"failed": _why(history)}
    retried = sum(history.asked_to_retry.values())
    found = [
        ("jobs promised", f"{len(history.promises):,}", f"{len(history.poisoned)} more messages could not become jobs"),
        *((f"  {state}", f"{count:,}", why.get(state, "")) for state, count in outcomes.items()),
        ("trainings paid", f"{len(history.trainings):,}", f"{retried} retries, {history.resolved} resolved by hand"),
        ("API calls", f"{sum(account.calls for account in history.accounts):,}", _limits(history)),
        ("events", f"{len(history.stream):,}", f"{sum(len(sink.got) for sink in history.sinks):,} deliveries"),
        ("faults", f"{sum(history.fired.values()):,}", f"of {len(history.fired)} kinds"),
    ]
    found += [(f"  {where}", f"{count:,}", kinds) for where, count, kinds in _faults(history)]
    found += [(name, f"{len(evidence):,}", "") for name, evidence in verdict.items()]
    return found


def _why(history: History) -> str:
    codes = Counter(job.error.partition(":")[0] for job in history.jobs.values() if job.state == "failed")
    return ", ".join(f"{code} {count}" for code, count in codes.most_common())


def _limits(history: History) -> str:
    return ", ".join(
        f"{account.name}: at most {account.most_in_window} of {account.limit} in a window"
        for account in history.accounts
    )


def _faults(history: History) -> list[tuple[str, int, str]]:
    groups: dict[str, dict[str, int]] = {}
    for kind, count in sorted(history.fired.items()):
        group, _, rest = kind.partition(" ")
        groups.setdefault(group, {})[rest] = count
    return [
        (group, sum(kinds.values()), ", ".join(f"{kind} {count}" for kind, count in kinds.items()))
        for group, kinds in groups.items()
    ]


def as_dict(history: History, verdict: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return the result as JSON."""
    return {
        "seed": history.seed,
        "minutes": history.seconds / 60,
        "load_before": round(os.getloadavg()[0], 2),
        "rows": [list(row) for row in rows(history, verdict)],
        "evidence": {name: list(evidence) for name, evidence in verdict.items()},
    }
