"""`python -m finetune_bench`: run the benchmarks."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from finetune_bench import budget, gateway, many, overhead, publish, report, submits, transfers
from finetune_bench.cases import CASES
from finetune_bench.contestants import CONTESTANTS
from finetune_queue.local.processes import ProcessError
from finetune_queue.local.valkey import ServerNotFoundError


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the benchmarks.

    ``measure`` takes a new folder for all that it makes, where to say how far it is, and the arguments; it prints its
    results and returns them as JSON. ``publish`` takes these, the part's name and what they were measured on, and
    writes docs/benchmarks.md between the markers of that name.
    """

    measure: Callable[[Path, Console, argparse.Namespace], dict[str, Any]]
    publish: Callable[[str, dict[str, Any], dict[str, Any]], None] = publish.tables


PARTS: Mapping[str, Part] = {
    "budget": Part(budget.measure, publish.budget),
    "inflight": Part(many.measure),
    "overhead": Part(overhead.measure),
    "submits": Part(submits.measure),
    "gateway": Part(gateway.measure),
    "transfers": Part(transfers.measure),
}


def main(arguments: Sequence[str]) -> int:
    """Run what was asked for; 1 if a part could not start."""
    asked = _parse(arguments)
    console = Console(stderr=True)
    found: dict[str, Any] = {"machine": report.machine(), "quick": asked.quick}
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as scratch:
        for name in asked.parts or PARTS:
            try:
                found[name] = PARTS[name].measure((asked.keep or Path(scratch)) / name, console, asked)
            except (ProcessError, ServerNotFoundError) as error:
                console.print(str(error), markup=False, style="red")
                return 1
            if asked.publish:
                PARTS[name].publish(name, found[name], found["machine"])
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
        console.print(f"Written: {asked.json}")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m finetune_bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (by default all)")
    parser.add_argument("--quick", action="store_true", help="few jobs: some minutes instead of an hour or two")
    parser.add_argument("--case", choices=list(CASES), help="of the budget, this case only")
    parser.add_argument(
        "--contestant", action="append", default=[], choices=list(CONTESTANTS), help="of the budget, only this one"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--keep", type=Path, help="keep the logs and data of all runs in this new folder")
    parser.add_argument("--publish", action="store_true", help="write the tables and the plot into docs/")
    asked = parser.parse_args(arguments)
    for name in asked.parts:
        if name not in PARTS:
            parser.error(f"there is no part '{name}' (choose from {', '.join(PARTS)})")
    return asked


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
