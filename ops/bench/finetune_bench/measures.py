"""The figures of one run, and how each is worked out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from finetune_bench.cases import Case


@dataclass(frozen=True, slots=True)
class Result:
    """What one contestant did in one case. Times in seconds from the first submit, memory in bytes."""

    case: str
    contestant: str
    processes: int
    jobs: int
    finished: int
    seconds: float | None
    of_shortest: float | None
    of_ceiling: float | None
    notice: float | None
    calls: int
    calls_per_job: float | None
    rejected: int
    most_calls_in_window: int
    most_admitted_in_window: int
    limit: int
    memory: int
    calls_by_operation: dict[str, int]
    start_times: list[float]
    finish_times: list[float]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON shows it."""
        return asdict(self)


def of_ceiling(case: Case, start_times: Sequence[float]) -> float | None:
    """Return how fast jobs went through while others waited, of what the limit allows; None without a backlog.

    Counted is when the trainings of the finished jobs were started: jobs finish as fast, but are seen to do so many at
    once. The time runs from the mean of the first window's worth of them to that of the last's: between two single ones
    a burst more or less would count. Of a contestant that was stopped all count, in its time after the first training.
    """
    if not case.backlog:
        return None
    times = sorted(start_times)
    if len(times) < case.jobs:
        return len(times) / (case.patience - case.training) / case.ceiling
    worth = case.calls // 2
    return (len(times) - worth) / (fmean(times[-worth:]) - fmean(times[:worth])) / case.ceiling


def result(
    case: Case,
    contestant: str,
    *,
    processes: int,
    start_times: Sequence[float],
    finish_times: Sequence[float],
    report: Mapping[str, Any],
    memory: int,
) -> Result:
    """Work out the figures of a run from what the sandbox saw and when its jobs finished.

    ``start_times`` and ``finish_times`` are those of the finished jobs, in the same order.
    """
    [account] = report["accounts"].values()
    finished = len(finish_times)
    seconds = max(finish_times) if finished == case.jobs else None
    notices = [end - start - case.training for start, end in zip(start_times, finish_times, strict=True)]
    operations = {name: sum(outcomes.values()) for name, outcomes in report["calls"].items()}
    return Result(
        case=case.name,
        contestant=contestant,
        processes=processes,
        jobs=case.jobs,
        finished=finished,
        seconds=seconds,
        of_shortest=None if seconds is None else case.shortest / seconds,
        of_ceiling=of_ceiling(case, start_times),
        notice=median(notices) if notices else None,
        calls=account["calls"],
        calls_per_job=account["calls"] / finished if finished else None,
        rejected=account["rejected"],
        most_calls_in_window=account["most_calls_in_window"],
        most_admitted_in_window=account["most_admitted_in_window"],
        limit=case.calls,
        memory=memory,
        calls_by_operation=operations,
        start_times=sorted(start_times),
        finish_times=sorted(finish_times),
    )
