"""What the dispatcher and the notifier share: a loop in a thread of its own, from the worker's start to its stop."""

import threading
from typing import Any, ClassVar, Protocol

import structlog
from celery import bootsteps
from kombu.exceptions import OperationalError

from finetune_queue.store import OutOfMemoryError, RedisError
from finetune_worker.backoff import backoff
from finetune_worker.container import Container
from finetune_worker.pulse import Loop
from finetune_worker.server_check import ServerCheckStep

log = structlog.get_logger(__name__)

LONGEST_SLEEP = 5.0
"""Seconds that a loop sleeps at most: a wake-up may be lost with the worker that it went to. Shorter than the store's
time-out."""

FIRST_RETRY, LONGEST_RETRY = 0.4, 5.0
"""Seconds until the next round after the first that Redis or the broker interrupted, and at most after several."""


def next_in(wait: float | None, *, more: bool) -> float:
    """Return the seconds until a loop looks again at what it took from: none if there may be ``more`` than it could
    take at once, else ``wait``, None if only a change can bring something."""
    if more:
        return 0.0
    return LONGEST_SLEEP if wait is None else wait


class Rounds(Protocol):
    """What a loop does: ``announce`` once, then ``step`` and ``sleep`` in turn."""

    def announce(self) -> None:
        """Write to Redis and the log what others have to know of this worker's settings."""

    def step(self) -> float:
        """Do all that can be done now; returns the seconds until there may be more."""

    def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds``, or until there is something to do."""


class LoopStep(bootsteps.StartStopStep):
    """The boot step that runs a loop."""

    requires = (ServerCheckStep,)
    loop: ClassVar[Loop]

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.stopping = threading.Event()

    def rounds(self, container: Container) -> Rounds:
        """Return what the loop does."""
        raise NotImplementedError

    def start(self, parent: Any) -> None:
        """Start the thread."""
        args = (parent.app.finetune.container,)
        threading.Thread(target=self.run, args=args, name=self.loop, daemon=True).start()

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Ask the thread to end; it does so after the step that it is in."""
        self.stopping.set()

    def terminate(self, parent: Any) -> None:
        """End with a worker that ends at once."""
        self.stop(parent)

    def run(self, container: Container) -> None:
        """Run the loop. A server that is away is logged once and waited for; an unexpected error is logged
        each time."""
        rounds = self.rounds(container)
        trouble = 0
        announced = False
        while not self.stopping.is_set():
            container.pulse.beat(self.loop)
            try:
                announced = announced or _announce(rounds)
                wait = rounds.step()
                if trouble:
                    log.info("loop_goes_on", loop=str(self.loop), tries=trouble + 1)
                trouble = 0
                rounds.sleep(wait)
            except (RedisError, OperationalError, OSError) as error:
                trouble += 1
                if trouble == 1:
                    log.warning("loop_waits_for_redis", loop=str(self.loop), error=str(error))
                self.stopping.wait(backoff(trouble, base=FIRST_RETRY, longest=LONGEST_RETRY))
            except Exception:
                log.exception("loop_failed", loop=str(self.loop))
                self.stopping.wait(1.0)


def _announce(rounds: Rounds) -> bool:
    """Announce, and tell whether the server took it. A full one does not, which must not keep the loop from its step:
    the dispatcher's begins by removing finished jobs, and so makes room."""
    try:
        rounds.announce()
    except OutOfMemoryError:
        return False
    return True
