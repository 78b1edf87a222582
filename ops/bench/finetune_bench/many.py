"""Many jobs in flight: parked ones, sweeps of all of them, and how soon a change at the provider is told."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from finetune_bench import report
from finetune_bench.inflight import parked, sweeps
from finetune_bench.notice import notices


def measure(folder: Path, console: Console, asked: argparse.Namespace) -> dict[str, Any]:
    """Measure everything, print it and return it."""
    sizes = (100, 1_000) if asked.quick else (1_000, 10_000, 100_000)
    items, changes = (1_000, 2) if asked.quick else (10_000, 8)
    steps: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
        "Parked jobs": lambda place: parked(place, sizes, console),
        "Sweeps": lambda place: sweeps(place, items, console),
        "From a training's end to our event": lambda place: notices(place, items, changes, console),
    }
    found = {}
    for number, (title, step) in enumerate(steps.items()):
        found[title] = step(folder / str(number))
        report.print_rows(title, found[title], Console())
    return found
