"""What the sandbox saw: the arrival log and the counters behind GET /_sandbox/report."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


def peak(times: Sequence[float], seconds: float) -> int:
    """The most of the (sorted) times that fall into any half-open window of that length. Exact."""
    most = first = 0
    for last, time in enumerate(times):
        while time - times[first] >= seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


@dataclass
class Arrivals:
    """Arrival times of one account's API calls: 8 bytes a call, so that a long run stays small."""

    all: array[float] = field(default_factory=lambda: array("d"))
    admitted: array[float] = field(default_factory=lambda: array("d"))


class CallLog:
    """Counts every call by operation and outcome, and keeps every arrival time."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.submits_by_name: Counter[str] = Counter()
        self.submits_by_dataset: Counter[str] = Counter()
        self.key_leaks = 0
        self.unknown_keys = 0
        self._arrivals: dict[str, Arrivals] = {}

    def arrived(self, account: str, now: float, *, admitted: bool) -> None:
        """Log one API call of an account at the moment of its arrival."""
        arrivals = self._arrivals.setdefault(account, Arrivals())
        arrivals.all.append(now)
        if admitted:
            arrivals.admitted.append(now)

    def answered(self, op: str, outcome: int | str) -> None:
        """Count the end of a call: the status of its reply, or "reply_lost", "reset" or "client_gone"."""
        self.outcomes[op, str(outcome)] += 1

    def submitted(self, name: str, data_source_path: str) -> None:
        """Count an accepted, that is paid, submit."""
        self.submits_by_name[name] += 1
        self.submits_by_dataset[data_source_path] += 1

    def describe(self, windows: dict[str, float]) -> dict[str, Any]:
        """The report's part about calls. ``windows`` gives each account's window in seconds."""
        calls: dict[str, dict[str, int]] = {}
        for (op, outcome), number in sorted(self.outcomes.items()):
            calls.setdefault(op, {})[outcome] = number
        return {
            "calls": calls,
            "accounts": {account: self._describe_account(account, seconds) for account, seconds in windows.items()},
            "submits": {
                "total": self.submits_by_name.total(),
                "by_name": dict(self.submits_by_name),
                "by_data_source_path": dict(self.submits_by_dataset),
            },
            "unknown_keys": self.unknown_keys,
            "key_leaks": self.key_leaks,
        }

    def _describe_account(self, account: str, seconds: float) -> dict[str, Any]:
        arrivals = self._arrivals.get(account, Arrivals())
        return {
            "window_seconds": seconds,
            "calls": len(arrivals.all),
            "rejected": len(arrivals.all) - len(arrivals.admitted),
            "most_calls_in_window": peak(arrivals.all, seconds),
            "most_admitted_in_window": peak(arrivals.admitted, seconds),
        }
