"""A worker whose child processes die over some requests: ``celery -A support.deadly_worker worker -P processes``."""

import os
import signal
from pathlib import Path
from typing import Any

from celery.concurrency.asynpool import AsynPool

from finetune_worker import tasks as tasks_module
from finetune_worker.celery import app

__all__ = ["app"]

AsynPool.timers = property(lambda pool: {pool.maintain_pool: 0.2})  # type: ignore[assignment,method-assign]
"""How often it looks for processes that are gone: Celery does every 5 s."""

tasks: Any = tasks_module
_accept = tasks.accept


def accept(container: Any, args: Any, kwargs: Any, **options: Any) -> str:
    """Die as long as the request says so; the count is a file, as nothing else outlives the process."""
    [request] = args
    if isinstance(request, str):
        request = container.jobs.get(request).request.model_dump()
    count = Path(f"deaths-{request['name']}")
    died = int(count.read_text()) if count.exists() else 0
    if died < int(request["labels"]["deaths"]):
        count.write_text(str(died + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    return str(_accept(container, args, kwargs, **options))


tasks.accept = accept
