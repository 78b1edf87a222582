"""`python -m finetune_bench`: run the benchmarks."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from finetune_bench import inflight, publish, report
from finetune_bench.cases import FULL, QUICK, Case
from finetune_bench.contestants import CONTESTANTS
from finetune_bench.measures import Result
from finetune_bench.run import run
from finetune_queue.local.processes import ProcessError
from finetune_queue.local.valkey import ServerNotFoundError


def main(arguments: Sequence[str]) -> int:
    """Run what was asked for; 1 if a part could not start."""
    asked = _parse(arguments)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as scratch:
        folder = asked.keep or Path(scratch)
        try:
            found = _measure(asked, folder, console)
        except (ProcessError, ServerNotFoundError) as error:
            console.print(str(error), markup=False, style="red")
            return 1
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
        console.print(f"Written: {asked.json}")
    return 0


def _measure(asked: argparse.Namespace, folder: Path, console: Console) -> dict[str, Any]:
    found: dict[str, Any] = {"machine": report.machine(), "quick": asked.quick}
    if asked.what in {"budget", "all"}:
        cases = [case for case in (QUICK if asked.quick else FULL) if asked.case in {None, case.name}]
        results = {case.name: _run_case(case, asked.contestant, folder, console) for case in cases}
        found["budget"] = {name: [each.as_dict() for each in rows] for name, rows in results.items()}
        if asked.publish:
            publish.budget([(case, results[case.name]) for case in cases], found["machine"])
    if asked.what in {"inflight", "all"}:
        found["inflight"] = inflight.measure(folder / "inflight", console, quick=asked.quick)
        if asked.publish:
            publish.inflight(found["inflight"], found["machine"])
    return found


def _run_case(case: Case, only: Sequence[str], folder: Path, console: Console) -> list[Result]:
    results = []
    for key in case.contestants:
        if only and key not in only:
            continue
        console.print(f"{case.name}: {CONTESTANTS[key].title} (up to {case.patience:.0f} s)", style="dim")
        results.append(run(case, key, folder / f"{case.name}-{key}"))
    report.print_table(case, results, Console())
    return results


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m finetune_bench", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["budget", "inflight", "all"], default="all")
    parser.add_argument("--quick", action="store_true", help="few jobs: about two minutes instead of an hour")
    parser.add_argument("--case", choices=[case.name for case in (*QUICK, *FULL)], help="this case only")
    parser.add_argument("--contestant", action="append", default=[], choices=list(CONTESTANTS), help="only this one")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--keep", type=Path, help="keep the logs and data of all runs in this new folder")
    parser.add_argument("--publish", action="store_true", help="write the tables and the plot into docs/")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
