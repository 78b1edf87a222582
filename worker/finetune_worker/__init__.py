"""The worker. ``celery -A finetune_worker`` asks here for ``app``, which is in :mod:`finetune_worker.celery`."""

import os
import signal
import sys
from typing import Any


def __getattr__(name: str) -> Any:
    """Import the application for Celery. Its own search would hide which library is missing."""
    if name != "app":
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    if os.getpid() == 1:
        # In a container: the kernel drops the one SIGTERM that comes before Celery has its handler, and the worker
        # would take jobs until it is killed. To import all takes seconds.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        from finetune_worker.celery import app
    except ModuleNotFoundError as error:
        message = f"A worker needs {error.name}, which is not installed: pip install 'finetune-queue[worker]'"
        raise SystemExit(message) from None
    return app
