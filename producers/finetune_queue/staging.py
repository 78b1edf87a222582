"""Staging: a local folder or ZIP is packed, checked, and becomes an object that the workers can read."""

import tempfile
from pathlib import Path

from finetune_queue.datasets.check import check_archive
from finetune_queue.datasets.errors import DatasetError
from finetune_queue.datasets.pack import local_path, pack
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
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        try:
            packed = pack(local_path(source), Path(folder) / "dataset.zip")
            report = check_archive(packed.path, trigger_word=trigger_word, instance_prompt=instance_prompt)
        except DatasetError as error:
            raise InvalidRequestError([f"dataset: {error}"]) from None
        if not report.ok:
            raise InvalidRequestError(
                [f"dataset: {sentence(each)}" for each in report.findings if each.severity == "error"]
            )
        try:
            url = Place(settings.finetune_staging_url).put_once(packed.path, f"{packed.sha256}.zip")
        except StorageError as error:
            message = f"The staging store {settings.finetune_staging_url} did not accept the dataset: {error}"
            raise StagingUnavailableError(message) from error
    return url, report


def sentence(finding: Finding) -> str:
    """Say what was found, where, and what to do."""
    place = f"{finding.file}: " if finding.file else ""
    return f"{place}{finding.message} {finding.fix}"
