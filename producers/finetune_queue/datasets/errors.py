"""The one error of this package: a dataset that cannot be read at all. What is wrong inside one is in its report."""

from typing import Literal

DatasetErrorCode = Literal[
    "dataset_not_found",  # no such file or folder, or the provider's bucket has no such object
    "dataset_unreadable",  # it is there, and the system refused to let us read it
    "dataset_not_allowed",  # outside the allowed roots, or an address that may not be used
    "dataset_bad_address",  # not a path or URL that is understood
    "dataset_empty",  # a folder without a single image
    "dataset_too_large",  # at or over the API's 100 MB
    "dataset_bad_names",  # files of a folder whose names cannot all go into one ZIP
    "dataset_not_public",  # an https address that the provider could not use
    "dataset_unavailable",  # the server or store does not answer now
]


class DatasetError(Exception):
    """A dataset that cannot be read, packed or passed on; `str()` is the sentence and what to do about it.

    `retryable` says that the same call may well work later without anybody changing the dataset.
    """

    def __init__(self, code: DatasetErrorCode, sentence: str, fix: str, *, retryable: bool = False) -> None:
        super().__init__(f"{sentence} {fix}")
        self.code = code
        self.sentence = sentence
        self.fix = fix
        self.retryable = retryable
