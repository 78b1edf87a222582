"""Staging: a local folder or ZIP is packed, checked, and becomes an object that the workers can read."""

import tempfile
from pathlib import Path

from finetune_queue.datasets.check import check_archive
from finetune_queue.datasets.errors import DatasetError
from finetune_queue.datasets.pack import local_path, pack
from finetune_queue.datasets.report import Finding
from finetune_queue.errors import InvalidRequestError, StagingUnavailableError
from finetune_queue.settings import Settings
from finetune_queue.storage import Place, StorageError


def stage(source: str, settings: Settings) -> str:
    """Pack and check ``source``, put it into the staging store and return its URL, which its content decides.

    Raises:
        InvalidRequestError: the dataset cannot be read or packed, or cannot be trained on.
        StagingUnavailableError: the staging store does not take it.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        try:
            packed = pack(local_path(source), Path(folder) / "dataset.zip")
            report = check_archive(packed.path)
        except DatasetError as error:
            raise InvalidRequestError([f"dataset: {error}"]) from None
        if not report.ok:
            raise InvalidRequestError(
                [f"dataset: {sentence(each)}" for each in report.findings if each.severity == "error"]
            )
        try:
            return Place(settings.finetune_staging_url).put_once(packed.path, f"{packed.sha256}.zip")
        except StorageError as error:
            message = f"The staging store {settings.finetune_staging_url} did not accept the dataset: {error}"
            raise StagingUnavailableError(message) from error


def sentence(finding: Finding) -> str:
    """Say what was found, where, and what to do."""
    place = f"{finding.file}: " if finding.file else ""
    return f"{place}{finding.message} {finding.fix}"
