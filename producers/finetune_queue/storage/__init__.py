"""Where artifacts and staged datasets lie: a folder or an object store, named by one URL.

`Place` is what the rest of the project uses, and `whole_file` for a file that comes from one; what can go wrong is the
tree under `StorageError`.
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
