"""Staging: a local folder or ZIP is packed, checked, and becomes an object that the workers can read."""

from finetune_queue.datasets.check import check_archive
from finetune_queue.datasets.errors import DatasetError
from finetune_queue.datasets.pack import packed
from finetune_queue.datasets.report import DatasetReport, Finding
from finetune_queue.errors import InvalidRequestError, StagingUnavailableError
from finetune_queue.settings import Settings
from finetune_queue.storage import Place, StorageError


def stage(source: str, settings: Settings) -> str:
    """Do what :func:`stage_checked` does, and return the URL alone."""
    return stage_checked(source, settings)[0]


def stage_checked(
    source: str, settings: Settings, *, trigger_word: str | None = None, instance_prompt: str | None = None
) -> tuple[str, DatasetReport]:
    """Pack and check ``source`` and put it into the staging store.

    Returns its URL, which its content decides, and what the check found, also of the request's texts if they are given.

    Raises:
        InvalidRequestError: the dataset cannot be read or packed, or cannot be trained on.
        StagingUnavailableError: the staging store does not take it.
    """
    try:
        with packed(source) as found:
            report = check_archive(found.path, trigger_word=trigger_word, instance_prompt=instance_prompt)
            if not report.ok:
                raise InvalidRequestError(
                    [f"dataset: {sentence(each)}" for each in report.findings if each.severity == "error"]
                )
            url = Place(settings.finetune_staging_url).put_once(found.path, f"{found.sha256}.zip")
            return url, report
    except DatasetError as error:
        raise InvalidRequestError([f"dataset: {error}"]) from None
    except StorageError as error:
        message = f"The staging store {settings.finetune_staging_url} did not accept the dataset: {error}"
        raise StagingUnavailableError(message) from error


def sentence(finding: Finding) -> str:
    """Say what was found, where, and what to do."""
    place = f"{finding.file}: " if finding.file else ""
    return f"{place}{finding.message} {finding.fix}"
