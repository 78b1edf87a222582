"""Work that goes on while a transfer moves the next bytes."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVarTuple

Given = TypeVarTuple("Given")


class Beside:
    """Runs one call after the other in a thread of its own, which the first one starts."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a call is at work."""
        return self._running is not None and not self._running.done()

    def start(self, call: Callable[[*Given], None], *args: *Given) -> None:
        """Wait for the call before, then run this one; what it raises is raised by the next `start` or `wait`."""
        self.wait()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        context = copy_context()  # so that what the thread logs has the fields of the job, too
        self._running = self._thread.submit(context.run, partial(call, *args))

    def wait(self) -> None:
        """Return when nothing is at work."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def close(self) -> None:
        """End the thread, after the call at work."""
        if self._thread is not None:
            self._thread.shutdown()
