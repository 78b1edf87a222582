"""How an account's calls are spent, side by side with other ways to do it."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from finetune_bench import report
from finetune_bench.cases import FULL, QUICK
from finetune_bench.contestants import CONTESTANTS
from finetune_bench.run import run


def measure(folder: Path, console: Console, asked: argparse.Namespace) -> dict[str, Any]:
    """Let the contestants do the cases; returns each case's results by its name."""
    found: dict[str, Any] = {}
    for case in QUICK if asked.quick else FULL:
        if asked.case not in {None, case.name}:
            continue
        results = []
        for key in case.contestants:
            if asked.contestant and key not in asked.contestant:
                continue
            console.print(f"{case.name}: {CONTESTANTS[key].title} (up to {case.patience:.0f} s)", style="dim")
            results.append(run(case, key, folder / f"{case.name}-{key}"))
        report.print_case(case, results, Console())
        found[case.name] = [each.as_dict() for each in results]
    return found
