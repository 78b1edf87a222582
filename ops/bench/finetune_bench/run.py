"""One run: a fresh Valkey, a fresh sandbox, one contestant's workers; then the jobs, and what came of them."""

import time
from datetime import datetime
from pathlib import Path

from finetune_bench import proc
from finetune_bench.cases import Case
from finetune_bench.contestants import CONTESTANTS, Contestant, Ground
from finetune_bench.ground import ask_sandbox
from finetune_bench.measures import Result, result
from finetune_bench.scene import scene

LOOK_EVERY = 0.5
"""Seconds between two looks at what is finished. When a job finished is read from its file, not from the look."""


def run(case: Case, key: str, folder: Path) -> Result:
    """Let one contestant do the case, with everything it makes in ``folder``.

    Raises:
        ProcessError: a part could not start, or ended.
    """
    contestant = CONTESTANTS[key]
    limit = {"SANDBOX_RATE_ALGORITHM": "sliding"}
    with scene(folder, case, contestant, workers=contestant.workers(), sandbox_settings=limit) as on:
        ground = on.ground
        began = time.time()
        contestant.give(case, ground)
        finished = _wait(case, ground, contestant, began)
        used = sum(proc.peak_of_session(worker.pid) for worker in on.workers)
        report = ask_sandbox(ground.api_url, "report")
        trainings = ask_sandbox(ground.api_url, "trainings")["trainings"]
    started = {row["name"]: datetime.fromisoformat(row["created_at"]).timestamp() for row in trainings}
    return result(
        case,
        key,
        processes=len(on.workers),
        start_times=[started[name] - began for name in finished],
        finish_times=[at - began for at in finished.values()],
        report=report,
        memory=used,
    )


def _wait(case: Case, ground: Ground, contestant: Contestant, began: float) -> dict[str, float]:
    """Wait for all jobs, or for as long as the case has patience; returns when each finished, by its name."""
    while True:
        late = time.time() - began > case.patience
        files = list(ground.weights.glob(contestant.finished))
        if late or len(files) >= case.jobs:
            return {contestant.name_of(path): path.stat().st_mtime for path in files}
        time.sleep(LOOK_EVERY)
