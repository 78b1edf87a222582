"""The figures of one run, and how each is worked out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
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
    finish_times: list[float]

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON shows it."""
        return asdict(self)


def of_ceiling(case: Case, finish_times: Sequence[float]) -> float | None:
    """Return how many jobs finished in the time, of those that the limit allows; None without a backlog.

    One training is taken off the time, as nobody can save it. The time ends with the last job, or when the contestant's
    time was over.
    """
    if not case.backlog:
        return None
    end = max(finish_times) if len(finish_times) == case.jobs else case.patience
    return len(finish_times) / (end - case.training) / case.ceiling


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
        of_ceiling=of_ceiling(case, finish_times),
        notice=median(notices) if notices else None,
        calls=account["calls"],
        calls_per_job=account["calls"] / finished if finished else None,
        rejected=account["rejected"],
        most_calls_in_window=account["most_calls_in_window"],
        most_admitted_in_window=account["most_admitted_in_window"],
        limit=case.calls,
        memory=memory,
        calls_by_operation=operations,
        finish_times=sorted(finish_times),
    )
