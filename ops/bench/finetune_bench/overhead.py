"""What our way through costs beside a bare Celery chain that makes the same HTTP calls, and which pool does best.

There is no limit to keep to here and no training to wait for, so that nothing is left but the work itself. The jobs are
put in the queue while the workers stand still; then these run until the last job is done. All take turns, several
times, and the medians count. On few cores the sandbox, the Redis server and the workers share them, so the CPU time of
each is measured too.
"""

import argparse
import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from finetune_bench import proc, report
from finetune_bench.cases import Case
from finetune_bench.contestants import CONTESTANTS, Contestant, Ground
from finetune_bench.scene import scene
from finetune_queue.local.processes import Child
from finetune_queue.store import connect

CASE = Case(name="overhead", title="no limit", jobs=300, calls=100_000, window=1.0, training=0.0, scale=20.0)
ROUNDS = 3
PATIENCE = 300.0
"""Seconds that a run may take."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A contestant of the budget's part, in a pool."""

    title: str
    contestant: str
    pool: str

    @property
    def missing(self) -> str | None:
        """Why it cannot run here."""
        if self.pool == "gevent" and find_spec("gevent") is None:
            return "gevent is no package of this project; try `.venv/bin/pip install gevent`, then this again"
        return None

    def workers(self) -> list[list[str]]:
        """Return each worker process's arguments for Celery."""
        # Celery takes `-P prefork` for its default, and then an app's own pool goes before it; this name it obeys.
        pool = "processes" if self.pool == "prefork" else self.pool
        workers = CONTESTANTS[self.contestant].workers()
        return [[pool if word == "threads" else word for word in words] for words in workers]


POOLS = ("threads", "prefork", "gevent")
LATENCIES: Mapping[float, Sequence[str]] = {
    0.1: POOLS,
    0.05: ("threads", "prefork"),
    0.02: ("threads", "prefork"),
    0.0: POOLS,
}
"""Seconds that the sandbox waits before each answer, and the pools that are tried with it. Amazon says of S3, which is
two of a job's requests, 0.1 to 0.2 s for a small object (its user guide, "Best practices design patterns")."""

ENTRIES: Mapping[str, Entry] = {
    f"{who}-{pool}": Entry(f"{title}, {pool}", contestant, pool)
    for pool in POOLS
    for who, title, contestant in (
        ("bare", "bare Celery chain", "tutorial"),
        ("ours", "finetune-queue", "ours-1"),
    )
}


def measure(folder: Path, console: Console, asked: argparse.Namespace) -> dict[str, Any]:
    """Let all take turns; returns the medians."""
    case, rounds = (replace(CASE, jobs=60), 1) if asked.quick else (CASE, ROUNDS)
    found = {}
    for latency in LATENCIES:
        answers = f"after {latency:g} s" if latency else "at once, as none does that is not on this machine"
        title = (
            f"{case.jobs} jobs, no limit, no training, a server that answers {answers}; one worker with 8 threads "
            f"(or processes); medians of {rounds}"
        )
        found[title] = _turns(case, rounds, latency, folder / f"{latency:g}", console)
        report.print_rows(title, found[title], Console())
    return found


def _turns(case: Case, rounds: int, latency: float, folder: Path, console: Console) -> list[dict[str, Any]]:
    entries = {key: entry for key, entry in ENTRIES.items() if entry.pool in LATENCIES[latency]}
    runs: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds):
        for key, entry in entries.items():
            if entry.missing is not None:
                console.print(f"overhead: {entry.title} is left out: {entry.missing}", markup=False, style="yellow")
                continue
            console.print(
                f"overhead: {entry.title}, answers after {latency:g} s, {number + 1} of {rounds}", style="dim"
            )
            runs.setdefault(key, []).append(_run(case, entry, folder / f"{key}-{number}", latency))
    return [_row(entries[key].title, each, runs[f"bare-{entries[key].pool}"]) for key, each in runs.items()]


def _row(title: str, runs: list[dict[str, float]], bare: list[dict[str, float]]) -> dict[str, Any]:
    middle = {name: median(run[name] for run in runs) for name in runs[0]}
    # Each round's own comparison: what slows the machine down for a while slows down both.
    speeds = [ours["jobs_per_s"] / theirs["jobs_per_s"] for ours, theirs in zip(runs, bare, strict=True)]
    return {
        "worker": title,
        "of_the_bare_chain": round(median(speeds), 2),
        "jobs_per_s": round(middle["jobs_per_s"], 1),
        **{f"{name}_per_job": round(middle[name], 1) for name in ("worker_ms", "redis_ms", "sandbox_ms")},
        "redis_commands_per_job": round(middle["commands"], 1),
        "memory_mb": round(middle["memory"] / 1e6),
    }


def _run(case: Case, entry: Entry, folder: Path, latency: float = 0.0) -> dict[str, float]:
    contestant = CONTESTANTS[entry.contestant]
    slow = [{"op": op, "kind": "slow", "seconds": latency, "count": None} for op in ("api", "put", "download")]
    answers = {"SANDBOX_FAULTS": json.dumps(slow if latency else [])}
    with (
        scene(folder, case, contestant, workers=entry.workers(), sandbox_settings=answers) as on,
        connect(on.ground.redis_url) as client,
    ):
        ground, workers = on.ground, on.workers
        for worker in workers:
            worker.send_signal(signal.SIGSTOP)
        contestant.give(case, ground)

        def used() -> dict[str, float]:
            redis = client.info()
            return {
                "worker_ms": 1000 * sum(proc.cpu_of_session(worker.pid) for worker in workers),
                "sandbox_ms": 1000 * proc.cpu_of_session(on.sandbox.pid),
                "redis_ms": 1000 * (redis["used_cpu_sys"] + redis["used_cpu_user"]),
                "commands": redis["total_commands_processed"],
            }

        before, began = used(), time.time()
        for worker in workers:
            worker.send_signal(signal.SIGCONT)
        _wait(workers[0], contestant, ground, case.jobs)
        after = used()
        ended = max(path.stat().st_mtime for path in ground.weights.glob(contestant.finished))
        memory = sum(proc.peak_of_session(worker.pid) for worker in workers)
    spent = {name: (after[name] - before[name]) / case.jobs for name in before}
    return {**spent, "jobs_per_s": case.jobs / (ended - began), "memory": memory}


def _wait(worker: Child, contestant: Contestant, ground: Ground, jobs: int) -> None:
    def done() -> bool:
        time.sleep(0.1)  # each look costs what the workers could use
        return len(list(ground.weights.glob(contestant.finished))) >= jobs

    worker.wait_until(done, timeout=PATIENCE)
