"""Where artifacts and staged datasets lie: a folder or an object store, named by one URL.

The rest of the project uses `Place`, and `whole_file` to write a local file whole or not at all. Errors are the tree
under `StorageError`.
"""

from finetune_queue.storage.errors import (
    BadUrlError,
    DiskFullError,
    DriverMissingError,
    IncompleteError,
    NoAccessError,
    ObjectMissingError,
    PlaceMissingError,
    StorageError,
    UnavailableError,
)
from finetune_queue.storage.local import whole_file
from finetune_queue.storage.place import Place, Stored

__all__ = [
    "BadUrlError",
    "DiskFullError",
    "DriverMissingError",
    "IncompleteError",
    "NoAccessError",
    "ObjectMissingError",
    "Place",
    "PlaceMissingError",
    "StorageError",
    "Stored",
    "UnavailableError",
    "whole_file",
]
