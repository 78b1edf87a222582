"""Webhooks as hints: the store gets at most one a second for each account, and always one after the last webhook."""

import asyncio
from collections.abc import Callable

import structlog
from anyio import to_thread

from finetune_queue.store import RedisError

log = structlog.get_logger(__name__)

APART = 1.0
"""Seconds between two hints to the store about the same account."""


class Hints:
    """Collects webhooks. Nothing of their content is kept: the account's next sweep asks Segmind itself."""

    def __init__(self, hint: Callable[[str], float | None]) -> None:
        """``hint`` is called in a thread: it tells the store, and returns the seconds until the account's next
        sweep."""
        self._hint = hint
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()

    def take(self, account: str) -> None:
        """Take a webhook for an account; returns at once."""
        if account in self._tasks:
            self._again.add(account)
        else:
            self._tasks[account] = asyncio.create_task(self._tell(account))

    async def close(self) -> None:
        """Drop the hints that were not passed on yet: the regular sweeps see the changes."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _tell(self, account: str) -> None:
        try:
            while True:
                try:
                    seconds = await to_thread.run_sync(self._hint, account)
                except RedisError as error:
                    log.warning("hook_not_told", account=account, error=str(error))
                else:
                    log.info("hook_taken", account=account, next_sweep_in=seconds)
                await asyncio.sleep(APART)
                if account not in self._again:
                    return
                self._again.discard(account)
        finally:
            del self._tasks[account]
            self._again.discard(account)
