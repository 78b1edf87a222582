"""`python -m finetune_chaos`: let everything go wrong at once, and judge what came of it."""

import argparse
import json
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console

from finetune_chaos import report, script
from finetune_chaos.checker import judge
from finetune_chaos.run import run
from finetune_queue.local.processes import ProcessError
from finetune_queue.local.valkey import ServerNotFoundError


def main(arguments: Sequence[str]) -> int:
    """Run it; 1 if a promise was broken or a part could not start."""
    asked = _parse(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(stderr=True)
    seed = asked.seed if asked.seed is not None else random.SystemRandom().randrange(1_000_000)
    console.print(f"seed {seed}: repeat this run with --seed {seed} --minutes {asked.minutes:g}", highlight=False)
    plan = script.write(seed, asked.minutes * 60, asked.jobs or round(100 * asked.minutes))
    with tempfile.TemporaryDirectory(prefix="finetune-chaos-") as scratch:
        folder = asked.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with (folder / "nemesis.txt").open("w") as told:

                def say(line: str) -> None:
                    print(line, file=told, flush=True)
                    console.print(line, style="dim", highlight=False, markup=False)

                history = run(plan, folder / "stack", workers=asked.workers, training=2.0, say=say)
        except (ProcessError, ServerNotFoundError) as error:
            console.print(str(error), markup=False, style="red")
            return 1
    verdict = judge(history)
    report.print_result(history, verdict, Console())
    if asked.json is not None:
        asked.json.write_text(json.dumps(report.as_dict(history, verdict), indent=1) + "\n")
    return 1 if any(verdict.values()) else 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m finetune_chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="what goes wrong when; a random one by default")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long it goes wrong")
    parser.add_argument("--jobs", type=int, help="how many jobs; 100 a minute by default")
    parser.add_argument("--workers", type=int, default=3, help="worker processes at any time")
    parser.add_argument("--keep", type=Path, help="keep the logs and data of the run in this new folder")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
