"""Staging: a local folder or ZIP becomes an object that the workers can read, named by its content."""

import tempfile
from pathlib import Path

from finetune_queue.datasets.errors import DatasetError
from finetune_queue.datasets.pack import pack
from finetune_queue.errors import InvalidRequestError, StagingUnavailableError
from finetune_queue.settings import Settings
from finetune_queue.storage import Place, StorageError


def stage(source: Path, settings: Settings) -> str:
    """Pack ``source``, put it into the staging store and return its URL; the same content gives the same URL.

    Raises:
        InvalidRequestError: the dataset cannot be read or packed.
        StagingUnavailableError: the staging store does not take it.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        try:
            packed = pack(source.expanduser(), Path(folder) / "dataset.zip")
        except DatasetError as error:
            raise InvalidRequestError([f"dataset: {error}"]) from error
        name = f"{packed.sha256}.zip"
        try:
            place = Place(settings.finetune_staging_url)
            if not place.exists(name):
                place.put_file(packed.path, name)
        except StorageError as error:
            message = f"The staging store {settings.finetune_staging_url} did not take the dataset: {error.sentence}"
            raise StagingUnavailableError(message) from error
        return place.url_of(name)
