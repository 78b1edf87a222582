"""What a worker sends over the broker beside its work: nothing to other workers, and its task events in batches."""

from collections.abc import Callable
from functools import partial
from typing import Any

from celery import bootsteps


class NoChatter(bootsteps.Step):
    """Gossip and mingle make every worker listen to all others and wait for them at start; nothing here needs it."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        parent.options.update(without_gossip=True, without_mingle=True)


EVENTS_EVERY = 0.2
"""Seconds between two messages with the task events since the last one."""


class EventBatches(bootsteps.StartStopStep):
    """Sends task events a few times a second. Celery sends them in each round of its event loop, one or two at a time,
    which takes a tenth of a busy worker's CPU; in Flower there is no difference.

    And each event is tried once. Celery would try a heartbeat until it is sent: while the broker is silent, its event
    loop would neither notice the lost connection nor act on a stop.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._timer: Any = None

    def start(self, parent: Any) -> None:
        """Take over from Celery, on each new connection to the broker."""
        parent.event_dispatcher.send = partial(_send_once, parent.event_dispatcher.send)
        if parent.hub is not None:  # without an event loop each event is sent by itself
            parent.event_dispatcher.on_send_buffered = None
            self._timer = parent.hub.call_repeatedly(EVENTS_EVERY, parent.event_dispatcher.flush)

    def stop(self, parent: Any) -> None:
        """Send what is left; events that cannot be sent now go out with the next connection."""
        if self._timer is not None:
            self._timer.cancel()
            parent.event_dispatcher.flush()


def _send_once(send: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return send(*args, **{**options, "retry": False})
