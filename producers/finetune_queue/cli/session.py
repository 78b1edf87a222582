"""The queue as a command uses it: settings from outside, logs on standard error."""

from collections.abc import Iterator
from contextlib import contextmanager

from finetune_queue.cli import output, words
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


def note_default_staging(settings: Settings, dataset: str) -> bool:
    """Say where a job's dataset was staged if it is there only by default; tell whether it was. A producer cannot see
    which folder a worker runs in."""
    if "finetune_staging_url" in settings.model_fields_set:
        return False
    from finetune_queue.storage import Place

    place = Place(settings.finetune_staging_url).url
    if not dataset.startswith(f"{place}/"):
        return False
    output.note(
        f"Note: FINETUNE_STAGING_URL is not set, so the dataset was staged in {words.place(place)}. Only a worker that "
        "was started in this folder finds it there; with any other, the job fails."
    )
    return True


def quiet_logs(settings: Settings) -> None:
    """Send logs to standard error as text: warnings, or whatever FINETUNE_LOG_LEVEL asks for."""
    from finetune_queue.logs import configure_logging

    changes: dict[str, object] = {"finetune_log_format": "console"}
    if "finetune_log_level" not in settings.model_fields_set:
        changes["finetune_log_level"] = "WARNING"
    configure_logging(settings.model_copy(update=changes))
