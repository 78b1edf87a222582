"""Staging: a local folder or ZIP is packed, checked, and becomes an object that the workers can read."""

from pathlib import Path

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

    Returns its URL and the report of the check, which includes the request's trigger word and prompt if they are given.

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
            return put_zip(found.path, found.sha256, settings), report
    except DatasetError as error:
        raise InvalidRequestError([f"dataset: {error}"]) from None


def put_zip(path: Path, sha256: str, settings: Settings) -> str:
    """Put a ZIP with this hash into the staging store, unless it is there, and return its URL. The hash is the name, so
    the same content has one URL, whoever stages it.

    Raises:
        StagingUnavailableError: the staging store does not take it.
        OSError: the ZIP cannot be read.
    """
    try:
        return Place(settings.finetune_staging_url).put_once(path, f"{sha256}.zip")
    except StorageError as error:
        message = f"The staging store {settings.finetune_staging_url} did not accept the dataset: {error}"
        raise StagingUnavailableError(message) from error


def sentence(finding: Finding) -> str:
    """Say what was found, where, and what to do."""
    place = f"{finding.file}: " if finding.file else ""
    return f"{place}{finding.message} {finding.fix}"
