"""Celery's settings, each with what it is for: a default is none of them, and a changed one has to say why."""

from typing import Any

from finetune_queue.messaging import transport_config
from finetune_queue.settings import Settings
from finetune_worker.celery import worker_config

TRANSPORT: dict[str, tuple[Any, str]] = {
    "broker_url": ("redis://localhost:6379/0", "the same Redis for all"),
    "broker_transport_options": (
        {
            "global_keyprefix": "{finetune}:",  # its keys stand beside those of the jobs
            "visibility_timeout": 3600,  # the shortest of all clients holds for all of them
            "socket_timeout": 10,  # or a publish to a silent server hangs for ever
            "socket_connect_timeout": 5,  # the same
            "socket_keepalive": True,  # a peer that went without a word is noticed by who only waits
            "health_check_interval": 10,  # the same, before a command
        },
        "one for all: any client of a database can restore another's messages",
    ),
    "task_default_queue": ("finetune", "part of the contract"),
    "task_serializer": ("json", "part of the contract; nothing that could be code"),
    "accept_content": (["json"], "the same"),
    "task_ignore_result": (True, "the job is the result"),
    "result_backend": (None, "the same"),
}

WORKER: dict[str, tuple[Any, str]] = {
    "task_queues": ({"finetune": {}, "finetune.transfer": {}}, "a worker without -Q takes from both"),
    "task_routes": (
        {f"finetune.{name}": {"queue": "finetune"} for name in ("run", "presign", "sweep", "access")},
        "short work does not wait behind transfers",
    ),
    "worker_pool": ("threads", "the work is waiting; every socket has deadlines of its own"),
    "worker_prefetch_multiplier": (1, "no more messages in hand than threads, also of those to be put back"),
    "worker_disable_prefetch": (True, "a message waits in the queue, where others can take it and it is counted"),
    "worker_send_task_events": (True, "Flower shows each stage"),
    "worker_hijack_root_logger": (False, "one pipeline for all log lines, with redaction"),
    "worker_redirect_stdouts": (False, "the same"),
    "worker_consumer": ("finetune_worker.server_check:PatientConsumer", "waits on a full broker"),
    "broker_connection_max_retries": (None, "an outage may be long; by default a worker ends after 100 tries"),
    "broker_connection_retry_on_startup": (True, "nor does it end if Redis starts after it"),
    "broker_channel_error_retry": (True, "a server that becomes a replica, or is full, ends no worker"),
    "worker_soft_shutdown_timeout": (25.0, "at SIGQUIT stages have the time that they have at SIGTERM"),
    "worker_enable_soft_shutdown_on_idle": (False, "a worker without work ends at once"),
    "worker_cancel_long_running_tasks_on_connection_loss": (False, "a stage's results go to the store"),
}


def test_everyone_on_the_broker_has_the_same_transport() -> None:
    assert transport_config(Settings()) == {name: value for name, (value, _) in TRANSPORT.items()}


def test_each_of_a_worker_s_settings_has_a_reason() -> None:
    assert worker_config(Settings()) == {name: value for name, (value, _) in (TRANSPORT | WORKER).items()}
