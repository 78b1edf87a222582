"""Where artifacts and staged datasets lie: a folder or an object store, named by one URL.

`Place` is all that the rest of the project uses; what can go wrong is the tree under `StorageError`.
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
]
