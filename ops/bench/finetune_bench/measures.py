"""The figures of one run, and how each is worked out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
    """Return how fast jobs finished, of the fastest that the limit allows; None if no rate can be told.

    The first window's burst comes once: its jobs, and the time until the first job finished, are taken off. The time
    ends with the last job, or when the contestant's time was over.
    """
    if not finish_times:
        return 0.0
    end = max(finish_times) if len(finish_times) == case.jobs else case.patience
    spread = end - min(finish_times)
    return max(0.0, len(finish_times) - case.calls / 2) / spread / case.ceiling if spread else None


def result(
    case: Case,
    contestant: str,
    *,
    processes: int,
    finish_times: Sequence[float],
    notice: float | None,
    report: Mapping[str, Any],
    memory: int,
) -> Result:
    """Work out the figures of a run from when its jobs finished and what the sandbox saw."""
    [account] = report["accounts"].values()
    finished = len(finish_times)
    seconds = max(finish_times) if finished == case.jobs else None
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
        notice=notice,
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
