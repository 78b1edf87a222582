"""A worker's end: stages hear of it when the signal comes."""

import signal
from types import FrameType
from typing import Any

from celery import bootsteps

from finetune_worker.container import Container

_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)


class StopSignalStep(bootsteps.StartStopStep):
    """Counts a stop from its signal on. Celery's own ``worker_shutting_down`` comes when its soft shutdown is over."""

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:
        """Put ourselves before Celery's handlers, which are there by now."""
        container: Container = parent.app.finetune.container
        for number in _SIGNALS:
            _before(number, container)


def _before(number: signal.Signals, container: Container) -> None:
    handler = signal.getsignal(number)
    if not callable(handler):
        return

    def stop(received: int, frame: FrameType | None) -> None:
        container.stop_soon()
        handler(received, frame)

    signal.signal(number, stop)
