"""The Celery side that producers and workers share: names of tasks and queues, and how the transport is set."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from finetune_queue.contract import USUAL_PRIORITY, JobRecord, JobState, Stage
from finetune_queue.errors import QueueUnavailableError
from finetune_queue.settings import Settings
from finetune_queue.store import RawMessage, RedisError, ResponseError, TakesPing, TaskCall
from finetune_queue.store.connection import CONNECT_TIMEOUT, READ_TIMEOUT
from finetune_queue.store.keys import BROKER_PREFIX

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Connection

# Through the standard library: a program that uses the SDK and sets up no logging gets this on stderr, not on stdout.
log = structlog.wrap_logger(logging.getLogger(__name__))

QUEUE = "finetune"
"""Short work: run, presign, submit, poll, publish, sweep, access."""

TRANSFER_QUEUE = "finetune.transfer"
"""Work that moves files: upload and download."""

RUN = "finetune.run"
PRESIGN = "finetune.presign"
SWEEP = "finetune.sweep"
ACCESS = "finetune.access"

REPLAYED = "finetune_replayed"
"""The header of a message that was a dead letter."""

CALL, CONTINUE, BEGIN, ACCEPT = 0, 3, 6, 9
"""Priorities of messages; Redis hands out the lowest number first. CALL: a job that was handed a call slot, which
nobody else can use while the message waits. CONTINUE: a job that goes on. BEGIN: a request of more than the usual
priority; it counts among the account's jobs only once a worker has taken it in, which would else be after a whole
batch. ACCEPT: any other request."""

ASKING_SECONDS = 3.0
"""Seconds that a broker may be silent while somebody waits for the answer."""

_TRANSFERS = frozenset({Stage.UPLOAD, Stage.DOWNLOAD})
_MOVING_FILES = frozenset({JobState.UPLOADING, JobState.DOWNLOADING})
"""The states in which ``_TRANSFERS`` run."""


def stage_task(stage: Stage) -> str:
    """Return the name of a stage's task."""
    return f"finetune.{stage}"


def short_name(task: str) -> str:
    """Return what logs and metrics call a task."""
    return task.removeprefix("finetune.")


def stage_queue(stage: Stage) -> str:
    """Return the queue that a stage's messages go to."""
    return TRANSFER_QUEUE if stage in _TRANSFERS else QUEUE


def running_queue(state: JobState) -> str:
    """Return the queue from which the running stage of a job in this state came. Not exact: a presign runs for an
    uploading job and a publish for a downloading one, and both count as transfers here."""
    return TRANSFER_QUEUE if state in _MOVING_FILES else QUEUE


def queue_lists(queue: str) -> dict[int, str]:
    """Return the keys of the lists in Redis in which a queue's messages wait, by priority, the lowest number first.
    kombu has a list for each of its priority steps, and rounds a priority between two of them down."""
    from kombu.transport.redis import Channel

    channel: Any = Channel
    first, *others = channel.priority_steps  # the list of the first has the queue's plain name
    name = f"{BROKER_PREFIX}{queue}"
    return {first: name, **{step: f"{name}{channel.sep}{step}" for step in others}}


def stray_lists() -> list[str]:
    """Return the keys of the lists in which messages for the workers end up if their sender left out the key prefix, or
    the queue's name, so that Celery's default was used."""
    without_prefix = [name.removeprefix(BROKER_PREFIX) for name in queue_lists(QUEUE).values()]
    return without_prefix + list(queue_lists("celery").values())


def transport_config(settings: Settings) -> dict[str, Any]:
    """Return the Celery settings that everyone on this broker must share.

    All need the same: kombu keeps unacknowledged messages per database, not per queue, so a client with a shorter
    visibility time-out would put others' messages back too early, and repeat them.
    """
    return {
        "broker_url": settings.broker_url,
        "broker_transport_options": {
            "global_keyprefix": BROKER_PREFIX,
            "visibility_timeout": 3600,
            # As long as the store waits. A worker that stops while the server is silent runs into it several times.
            "socket_timeout": READ_TIMEOUT,
            "socket_connect_timeout": CONNECT_TIMEOUT,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
        "task_default_queue": QUEUE,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "result_backend": None,
    }


@dataclass(frozen=True, slots=True)
class Answered:
    """The names of the Celery workers that answered: ``ours`` have this service's tasks, ``others`` do not, such as
    consumers of events. ``untaken`` are this service's queues that none of ``ours`` takes from."""

    ours: list[str]
    others: list[str]
    untaken: tuple[str, ...] = ()


class Messenger:
    """Sends messages to the workers. A lost one costs a delay: the job's deadline sends it again."""

    def __init__(self, app: "Celery") -> None:
        self._app = app

    def run(self, job: JobRecord) -> None:
        """Ask for a registered job to be started. If the broker is out of reach, the job's deadline asks later."""
        self.run_many([job])

    def run_many(self, jobs: Sequence[JobRecord]) -> None:
        """Do what :meth:`run` does for many jobs, in few round trips if the broker's transport can send batches."""
        from kombu.exceptions import BatchPublishError, OperationalError  # type: ignore[attr-defined]

        try:
            with self._app.producer_or_acquire() as producer, producer.batch():
                for job in jobs:
                    priority = BEGIN if job.request.priority > USUAL_PRIORITY else ACCEPT
                    self._app.send_task(RUN, args=(job.id,), queue=QUEUE, priority=priority, producer=producer)
        except (OperationalError, BatchPublishError, RedisError) as error:
            _not_sent(jobs, error)

    def start_many(self, jobs: Sequence[JobRecord]) -> None:
        """Start the rest of each job's chain. If the broker is out of reach, the jobs' deadlines start it later."""
        from kombu.exceptions import OperationalError

        for number, job in enumerate(jobs):
            try:
                self.start(job.id, job.stage.and_after())
            except (OperationalError, RedisError) as error:
                _not_sent(jobs[number:], error)
                return

    def start(self, job_id: str, stages: Sequence[Stage], *, priority: int = CONTINUE) -> None:
        """Start the rest of a job's chain; ``priority`` is that of its first message.

        A job that has a call slot to ask for its upload's URL first gets a message in the short queue, which makes that
        call alone; the upload then waits its turn among the transfers.
        """
        from celery import chain, signature

        # Spelled out, as JSON makes a list of the arguments of all tasks but the first, and Flower would show both
        # forms.
        args, shown = (job_id,), repr((job_id,))
        tasks = [(stage_task(stage), stage_queue(stage)) for stage in stages]
        if priority == CALL and stages[0] is Stage.UPLOAD:
            tasks.insert(0, (PRESIGN, QUEUE))
        links = [
            signature(task, args=args, argsrepr=shown, queue=queue, priority=CONTINUE, immutable=True, app=self._app)
            for task, queue in tasks
        ]
        links[0].set(priority=priority)
        chain(*links, app=self._app).apply_async()

    def access(self, job_id: str, *, priority: int = CONTINUE) -> None:
        """Ask for the change of access that an ended job wants."""
        self._app.send_task(ACCESS, args=(job_id,), queue=QUEUE, priority=priority)

    def sweep(self, account: str) -> None:
        """Ask for a sweep of an account, which was handed a call slot: one look at all of its trainings."""
        self._app.send_task(SWEEP, args=(account,), queue=QUEUE, priority=CALL)

    def send_again(self, message_id: str, message: TaskCall | RawMessage) -> None:
        """Send a dead letter again: a request with the id that it had, a message that Celery could not read as it came.

        Raises:
            QueueUnavailableError: the broker is out of reach.
        """
        with _broker_errors():
            if isinstance(message, TaskCall):
                self._app.send_task(
                    RUN,
                    args=message.args,
                    kwargs=message.kwargs,
                    task_id=message_id,
                    queue=QUEUE,
                    priority=ACCEPT,
                    headers={REPLAYED: True},
                )
                return
            with self._app.producer_or_acquire() as producer:
                producer.publish(
                    message.body,
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                    headers=message.headers,
                    exchange="",
                    routing_key=QUEUE,
                    priority=ACCEPT,
                )

    def queued(self, queue: str) -> int:
        """Return how many messages wait in a queue.

        Raises:
            OperationalError, RedisError: the broker is out of reach.
        """
        with self._app.producer_or_acquire() as producer:
            return _length(producer.channel, queue)

    def queued_before(self, queue: str, priority: int) -> int:
        """Return how many messages of a queue wait in front of one that comes now with this priority.

        Raises:
            OperationalError, RedisError: the broker is out of reach.
        """
        with self._app.producer_or_acquire() as producer:
            # kombu's client puts the prefix before each key by itself.
            lists = [name.removeprefix(BROKER_PREFIX) for step, name in queue_lists(queue).items() if step <= priority]
            with producer.channel.conn_or_acquire() as client:
                return sum(client.llen(name) for name in lists)

    def lengths(self) -> dict[str, int]:
        """Return how many messages wait in each of our queues.

        Raises:
            QueueUnavailableError: the broker is out of reach; said at once, or after 3 s of silence.
        """
        with _broker_errors(), self._asking() as connection:
            channel = connection.default_channel
            return {queue: _length(channel, queue) for queue in (QUEUE, TRANSFER_QUEUE)}

    def workers(self, timeout: float) -> Answered:
        """Return the Celery workers that answer within ``timeout`` seconds; it always takes at least that long.

        They are asked for their tasks, and not just pinged: a consumer of events is a Celery worker on this broker,
        too.

        Raises:
            QueueUnavailableError: the broker is out of reach; said at once, or after 3 s of silence.
        """
        with _broker_errors(), self._asking() as connection:
            ask = partial(self._app.control.broadcast, reply=True, timeout=timeout, connection=connection)
            replies = ask("registered")
            tasks = [(name, known) for reply in replies or () for name, known in reply.items()]
            ours = sorted(name for name, known in tasks if RUN in known)
            # As many replies as names, which may repeat: workers on one machine that were given none have the same.
            told = ask("active_queues", destination=ours, limit=len(ours)) if ours else None
        takes = [{queue["name"] for queue in queues} for reply in told or () for queues in reply.values()]
        # A worker that did not answer this may take from any queue.
        heard = ours and len(takes) == len(ours) and all(takes)
        untaken = {QUEUE, TRANSFER_QUEUE}.difference(*takes) if heard else set()
        return Answered(ours, sorted({name for name, _ in tasks}.difference(ours)), tuple(sorted(untaken)))

    @contextmanager
    def _asking(self) -> Iterator["Connection"]:
        """Connect for a question that somebody waits for: one try, where kombu's own four take six seconds."""
        times = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), ASKING_SECONDS)
        # At the end kombu waits for the reply to its last BRPOP, which would otherwise take up to a second.
        times["polling_interval"] = 0.1
        with self._app.connection_for_read(transport_options=times) as connection:
            yield connection.ensure_connection(max_retries=0)


def _not_sent(jobs: Sequence[JobRecord], error: Exception) -> None:
    then = "they are kept, and start some time after the broker is back"
    log.warning("messages_not_sent", jobs=len(jobs), first=jobs[0].id, error=str(error), next=then)


def _length(channel: Any, queue: str) -> int:
    # A declaration writes nothing to Redis and answers with the length; a passive one looks for the wrong key
    # (kombu's EXISTS goes without its own key prefix).
    return int(channel.queue_declare(queue).message_count)


@contextmanager
def _broker_errors() -> Iterator[None]:
    from kombu.exceptions import OperationalError

    try:
        yield
    except (OperationalError, RedisError) as error:
        what = "refused a command" if isinstance(error, ResponseError) else "is out of reach"
        message = f"The broker {what}: {error}"
        raise QueueUnavailableError(message) from error


def producer_app(settings: Settings) -> "Celery":
    """Make a Celery app that only sends. Celery is imported here, late, to keep the SDK's import light."""
    from celery import Celery

    patch_channels()
    app = Celery("finetune-producer", set_as_current=False)
    app.conf.update(transport_config(settings))
    return app


def patch_channels() -> None:
    """Patch kombu 5.7 in this process: a channel that lost its connection raises a ConnectionError, and a server whose
    disk fails can still be asked how long the queues are (:class:`TakesPing`).

    Without it such a channel raises an AttributeError, in two cases. When a broker dies, kombu closes the connection's
    channels one by one and stops at the first that fails; the ones left are later closed, or acknowledge a message,
    without a transport. And when declaring a queue finds the connection lost, kombu makes a new one, but sends the
    message to the old channel. Celery does not take an AttributeError for a lost connection: a worker exits
    ("Unrecoverable error") instead of connecting again, and a message is not sent again.
    """
    from kombu.transport.redis import Channel

    channel: Any = Channel
    original = channel._connparams  # noqa: SLF001 - the one place that all uses of a dead channel come through
    if getattr(original, "patched", False):
        return

    def living(self: Any, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's signature
        if self.connection is None or self.connection.client is None:
            message = "the connection of this channel was closed"
            raise ConnectionError(message)
        found = original(self, asynchronous=asynchronous)
        found["connection_class"] = type("BrokerConnection", (TakesPing, found["connection_class"]), {})
        return found

    living.patched = True  # type: ignore[attr-defined]
    channel._connparams = living  # noqa: SLF001
