"""A worker whose calls begin at once, and last for no longer: ``celery -A support.prompt_worker worker``.

A real one holds a job, or its account's sweep, for a call that begins 5 s late, and whoever recovers it after a kill
has to wait for that.
"""

from finetune_queue.store import budget
from finetune_worker import server_check
from finetune_worker.celery import app
from finetune_worker.stages import calls, sweep

__all__ = ["app"]

budget.START_WITHIN = calls.START_WITHIN = 1.0  # type: ignore[attr-defined]
sweep.ACTING = 1.0
server_check.PAUSE = 0.2
