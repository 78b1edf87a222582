"""The Celery application: ``celery -A finetune_worker worker``. All of Celery's globals are in this module."""

import atexit
import logging
import sys
import warnings
from typing import Any

import structlog
from celery import Celery, signals
from celery.concurrency import get_implementation
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.exceptions import CPendingDeprecationWarning

from finetune_queue import __version__, tracing
from finetune_queue.logs import configure_logging
from finetune_queue.messaging import ACCESS, PRESIGN, QUEUE, RUN, SWEEP, TRANSFER_QUEUE, transport_config
from finetune_queue.settings import Settings, SettingsError, load_settings
from finetune_worker.broker import patch_kombu
from finetune_worker.chatter import EventBatches, NoChatter
from finetune_worker.dispatcher import DispatcherStep
from finetune_worker.intake import DeadLetterStep
from finetune_worker.notifier import NotifierStep
from finetune_worker.probes import ProbeStep
from finetune_worker.runtime import Runtime
from finetune_worker.server_check import ServerCheckStep
from finetune_worker.stopping import StopSignalStep
from finetune_worker.tasks import register
from finetune_worker.thread_pool import patch_thread_pool

log = structlog.get_logger(__name__)

SERVICE = "finetune-worker"
"""What traces call a worker that has no name of its own."""


def worker_config(settings: Settings) -> dict[str, Any]:
    """Return the Celery settings of a worker; docs/architecture.md gives the reason of each."""
    return {
        **transport_config(settings),
        "task_queues": {QUEUE: {}, TRANSFER_QUEUE: {}},
        "task_routes": {name: {"queue": QUEUE} for name in (RUN, PRESIGN, SWEEP, ACCESS)},
        "worker_pool": "threads",
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_consumer": "finetune_worker.server_check:PatientConsumer",
        "broker_connection_max_retries": None,
        "broker_connection_retry_on_startup": True,
        "broker_channel_error_retry": True,
        "worker_soft_shutdown_timeout": settings.finetune_shutdown_timeout,
        "worker_enable_soft_shutdown_on_idle": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }


def create_app(settings: Settings) -> Celery:
    """Build the application with its tasks and its boot steps. Connects to nothing."""
    patch_kombu()
    patch_thread_pool()
    app = Celery("finetune_worker", set_as_current=False)
    app.conf.update(worker_config(settings))
    runtime = Runtime(settings, app)
    app.finetune = runtime  # type: ignore[attr-defined]
    register(app, runtime)
    app.steps["worker"] |= {NoChatter, StopSignalStep, ProbeStep, ServerCheckStep, DispatcherStep, NotifierStep}
    app.steps["consumer"] |= {DeadLetterStep, EventBatches}
    return app


def _load() -> Settings:
    try:
        # Flower and `celery inspect` load this module, too, and need no key.
        return load_settings(worker="worker" in sys.argv)
    except SettingsError as error:
        raise SystemExit(str(error)) from None


_settings = _load()
app = create_app(_settings)


@signals.setup_logging.connect
def _set_up_logging(**_: object) -> None:
    configure_logging(_settings)
    if _settings.finetune_log_level != "DEBUG":
        # "received" and "succeeded" for every task: each stage says that itself, in one line with its fields.
        for name in ("celery.worker.strategy", "celery.app.trace"):
            logging.getLogger(name).setLevel(logging.WARNING)


@signals.celeryd_after_setup.connect
def _silence_advice(**_: object) -> None:
    # Said at each lost connection, in five lines with a path: that running tasks go on then, as they are meant to here.
    # Not before Celery has set its own filters, which show it.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)


@signals.celeryd_after_setup.connect
def _warn_of_green_pool(instance: Any, **_: object) -> None:
    if get_implementation(instance.pool_cls).is_green:
        log.warning("pool_slow", next="use -P threads, the default, or -P processes (docs/benchmarks.md)")


@signals.celeryd_after_setup.connect
def _begin(instance: Any, **_: object) -> None:
    if _settings.finetune_log_format == "json":
        instance.quiet = True  # no banner: what reads the log takes each line for an object
    atexit.register(_end)  # Celery sends `worker_shutdown` at a warm shutdown only, not at the soft one
    queues = sorted(app.amqp.queues.consume_from)
    log.info(
        "worker_started", worker=instance.hostname, version=__version__, concurrency=instance.concurrency, queues=queues
    )


@signals.worker_process_init.connect
def _trace_process(**_: object) -> None:
    tracing.start(SERVICE)


@signals.worker_init.connect
def _trace_worker(sender: Any, **_: object) -> None:
    # The parent of a prefork pool runs no task, and what traces must begin after the fork.
    if not issubclass(get_implementation(sender.pool_cls), PreforkPool):
        tracing.start(SERVICE)


@signals.worker_process_shutdown.connect
def _sign_off(**_: object) -> None:
    app.finetune.sign_off()  # type: ignore[attr-defined]
    tracing.stop()


def _end() -> None:
    _sign_off()
    log.info("worker_stopped")
