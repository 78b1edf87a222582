"""One run: a fresh Valkey, a fresh sandbox, one contestant's workers; then the jobs, and what came of them."""

import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from finetune_bench import proc
from finetune_bench.cases import Case
from finetune_bench.contestants import CONTESTANTS, Contestant, Ground
from finetune_bench.ground import START, ask_sandbox, clean_environment, make_dataset, python, start_sandbox
from finetune_bench.measures import Result, result
from finetune_queue.local.processes import Child
from finetune_queue.local.valkey import ValkeyServer

LOOK_EVERY = 0.5
"""Seconds between two looks at what is finished. When a job finished is read from its file, not from the look."""


def run(case: Case, key: str, folder: Path) -> Result:
    """Let one contestant do the case, with everything it makes in ``folder``.

    Raises:
        ProcessError: a part could not start, or ended.
    """
    contestant = CONTESTANTS[key]
    folder = folder.absolute()
    for part in ("weights", "secrets", "temporary"):
        (folder / part).mkdir(parents=True)
    with ExitStack() as stack:
        valkey = stack.enter_context(ValkeyServer(folder / "valkey"))
        sandbox, api = start_sandbox(folder, _sandbox_settings(case))
        stack.callback(sandbox.stop)
        ground = Ground(
            folder=folder,
            redis_url=valkey.url,
            api_url=api["base_url"],
            api_key=api["api_keys"][0],
            dataset=make_dataset(folder / "datasets"),
        )
        env = {**clean_environment(), "TMPDIR": str(folder / "temporary"), **contestant.environment(case, ground)}
        workers = []
        for number, command in enumerate(contestant.workers()):
            worker = Child(f"worker{number}", python(command), env=env, cwd=folder, log=folder / f"worker{number}.log")
            stack.callback(worker.stop, grace=5.0)
            workers.append(worker.start())
        for worker in workers:
            worker.wait_for_line(lambda line: " ready." in line, timeout=START)
        began = time.time()
        contestant.give(case, ground)
        finished = _wait(case, ground, contestant, began)
        used = sum(proc.peak_of_session(worker.pid) for worker in workers)
        report = ask_sandbox(ground.api_url, "report")
        trainings = ask_sandbox(ground.api_url, "trainings")["trainings"]
    started = {row["name"]: datetime.fromisoformat(row["created_ts"]).timestamp() for row in trainings}
    return result(
        case,
        key,
        processes=len(workers),
        start_times=[started[name] - began for name in finished],
        finish_times=[at - began for at in finished.values()],
        report=report,
        memory=used,
    )


def _sandbox_settings(case: Case) -> dict[str, str]:
    return {
        "SANDBOX_RATE_LIMIT": f"{case.calls}/{case.window:g}",
        "SANDBOX_RATE_ALGORITHM": "sliding",
        "SANDBOX_TRAINING_SECONDS": f"{case.training:g}",
        "SANDBOX_DEPLOY_SECONDS": "3600",
        "SANDBOX_LIST_CARRIES_WEIGHTS_URL": "true" if case.list_has_urls else "false",
    }


def _wait(case: Case, ground: Ground, contestant: Contestant, began: float) -> dict[str, float]:
    """Wait for all jobs, or for as long as the case has patience; returns when each finished, by its name."""
    while True:
        late = time.time() - began > case.patience
        files = list(ground.weights.glob(contestant.finished))
        if late or len(files) >= case.jobs:
            return {contestant.name_of(path): path.stat().st_mtime for path in files}
        time.sleep(LOOK_EVERY)
