"""The queue as a command uses it: settings from outside, logs on standard error."""

from collections.abc import Iterator
from contextlib import contextmanager

from finetune_queue.sdk import FineTuneQueue
from finetune_queue.settings import Settings, load_settings


@contextmanager
def open_queue(settings: Settings | None = None) -> Iterator[FineTuneQueue]:
    """Open the queue that the settings name and close it at the end.

    Raises:
        SettingsError: names every setting that is wrong.
    """
    if settings is None:
        settings = load_settings()
    quiet_logs(settings)
    with FineTuneQueue(settings) as queue:
        yield queue


def quiet_logs(settings: Settings) -> None:
    """Send logs to standard error as text: warnings, or whatever FINETUNE_LOG_LEVEL asks for."""
    from finetune_queue.logs import configure_logging

    changes: dict[str, object] = {"finetune_log_format": "console"}
    if "finetune_log_level" not in settings.model_fields_set:
        changes["finetune_log_level"] = "WARNING"
    configure_logging(settings.model_copy(update=changes))
