"""Which place a URL names, as this process sees it."""

from pathlib import Path

from finetune_queue.place_url import FORMS, ObjectAddress, read_place
from finetune_queue.storage.errors import BadUrlError, PlaceMissingError

__all__ = ["ObjectAddress", "parse_url"]


def parse_url(url: str) -> Path | ObjectAddress:
    """Return the local path, made absolute, or the object address.

    Raises:
        BadUrlError: another scheme, no bucket, or credentials inside the URL.
        PlaceMissingError: the path begins at the current folder, which was removed.
    """
    try:
        place = read_place(url)
    except ValueError as error:
        raise BadUrlError(str(error), f"Use {FORMS}.") from None
    try:
        return place.absolute() if isinstance(place, Path) else place
    except FileNotFoundError:
        raise PlaceMissingError("The current folder was removed.", "Go to one that is there.") from None
