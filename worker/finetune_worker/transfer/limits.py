"""What bounds a transfer, and the one place that counts its bytes."""

import time
from dataclasses import dataclass

from finetune_queue.progress import OnProgress
from finetune_worker.transfer.errors import TryAgain

STEP_SECONDS = 0.5
STEP_BYTES = 8 * 1024 * 1024
"""Progress is reported after either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferLimits:
    """The bounds of one transfer; times in seconds."""

    connect_timeout: float = 10.0
    stall_timeout: float = 30.0
    """How long the connection may be silent, and over how long `min_rate` is measured."""
    min_rate: float = 4096.0
    """Bytes a second; slower is as good as stalled."""
    total_timeout: float = 3600.0
    max_bytes: int = 10 * 1024**3

    @property
    def longest_silence(self) -> float:
        """How many seconds the job may go without a sign of life: a download until its reply begins, with all
        redirects, and an upload until its next block is sent, even if no silence lasts for `stall_timeout`."""
        return 1.5 * self.stall_timeout


class TransferMeter:
    """Counts a transfer's bytes, reports its progress and notices a stall."""

    def __init__(self, limits: TransferLimits, *, done: int, total: int | None, report: OnProgress | None) -> None:
        self.done = done
        self.total = total
        self._limits = limits
        self._report = report
        self._told_at = self._window_at = time.monotonic()
        self._told = self._window = done
        self.tell()

    def add(self, count: int) -> None:
        """Count bytes that moved.

        Raises:
            TryAgain: fewer than ``min_rate`` bytes a second moved for ``stall_timeout``.
        """
        self.done += count
        now = time.monotonic()
        lasted = now - self._window_at
        if lasted >= self._limits.stall_timeout:
            if self.done - self._window < self._limits.min_rate * lasted:
                rate = (self.done - self._window) / lasted
                raise TryAgain("stalled", f"The transfer went at {rate:.0f} bytes a second for {lasted:.0f} s.")
            self._window_at, self._window = now, self.done
        if now - self._told_at >= STEP_SECONDS or self.done - self._told >= STEP_BYTES:
            self.tell()

    def tell(self) -> None:
        """Report now."""
        self._told_at, self._told = time.monotonic(), self.done
        if self._report is not None:
            self._report(self.done, self.total)
