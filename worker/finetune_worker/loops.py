"""A loop beside the worker's consumer, in a thread of its own: it goes round until the worker stops."""

import threading
from typing import Any, ClassVar, Protocol

import structlog
from celery import bootsteps
from kombu.exceptions import OperationalError

from finetune_queue.store import RedisError
from finetune_worker.backoff import backoff
from finetune_worker.container import Container
from finetune_worker.pulse import Loop
from finetune_worker.server_check import ServerCheckStep

log = structlog.get_logger(__name__)

AGAIN = 0.4
LONGEST = 5.0
"""Seconds until the next round after the first one that met trouble, and at most."""


class Rounds(Protocol):
    """What a loop does."""

    def announce(self) -> None:
        """Tell once, before the first step, what all must know."""

    def step(self) -> float:
        """Do all that can be done now; returns the seconds until there may be more."""

    def sleep(self, seconds: float) -> None:
        """Sleep, or until somebody is wanted."""


class LoopStep(bootsteps.StartStopStep):
    """Runs a loop from the worker's start to its shutdown."""

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
        """Go round. A server that is away is told of once, and waited for; what nobody expects is told each time."""
        rounds = self.rounds(container)
        trouble = 0
        announced = False
        while not self.stopping.is_set():
            container.pulse.beat(self.loop)
            try:
                if not announced:
                    rounds.announce()
                    announced = True
                wait = rounds.step()
                if trouble:
                    log.info("loop_goes_on", loop=str(self.loop), tries=trouble + 1)
                trouble = 0
                rounds.sleep(wait)
            except (RedisError, OperationalError, OSError) as error:
                trouble += 1
                if trouble == 1:
                    log.warning("loop_waits_for_redis", loop=str(self.loop), error=str(error))
                self.stopping.wait(backoff(trouble, base=AGAIN, longest=LONGEST))
            except Exception:
                log.exception("loop_failed", loop=str(self.loop))
                self.stopping.wait(1.0)
