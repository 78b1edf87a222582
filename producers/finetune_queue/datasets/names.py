"""Rules on file names inside a dataset: what is junk, what may not be unpacked, and how a name is shown."""

import re

from finetune_queue.plain_words import escaped

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
"""Suffixes that trainers look for."""

OTHER_IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".cr2", ".dng", ".gif", ".heic", ".heif", ".jp2", ".nef", ".psd", ".svg", ".tif", ".tiff"}
)
"""Suffixes of pictures that trainers do not look for."""

CAPTION_SUFFIX = ".txt"

_MAC_ICON = "Icon\r"
"""What macOS calls the file of a folder's own icon."""
_JUNK_NAMES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", _MAC_ICON.lower(), "@eadir", "__macosx"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"^[A-Za-z]:")
_SHOWN = 100
_NAMED = 3
_MAX_PART_BYTES = 255


def suffix_of(name: str) -> str:
    """Return the suffix in lower case, with its dot; empty when there is none."""
    base = name.rpartition("/")[2]
    stem, dot, suffix = base.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def stem_of(name: str) -> str:
    """Return the path without its suffix: what an image and its caption have in common."""
    return name[: len(name) - len(suffix_of(name))]


def is_junk(name: str) -> bool:
    """Tell whether a system left this file behind: hidden files, AppleDouble, thumbnails."""
    return any(part.startswith(".") or part.lower() in _JUNK_NAMES for part in name.split("/") if part)


def unsafe_path(name: str) -> str | None:
    """Say why a name must not be unpacked, as the end of a sentence, or None when it is safe.

    Refused is what "zip slip" reports show: a path that is absolute, climbs out, or differs between systems.
    """
    parts = name.removesuffix("/").split("/")
    rules = (
        (not name, "it is empty"),
        ("\\" in name, "it has a backslash, which separates folders on some systems"),
        (name.startswith("/") or _DRIVE.match(name), "it is an absolute path"),
        (any(part in ("", ".", "..") for part in parts), "it has an empty, '.' or '..' part"),
        (_CONTROL.search(name.removesuffix(_MAC_ICON)), "it has control characters"),
        (any(len(part.encode("utf-8", "replace")) > _MAX_PART_BYTES for part in parts), "a part is over 255 bytes"),
    )
    return next((reason for broken, reason in rules if broken), None)


def display_name(name: str) -> str:
    """Make a name fit for a terminal, a log and JSON: unprintable characters are escaped, long names lose their middle.

    Names come from whoever made the archive, and an escape sequence in one could rewrite what a terminal shows.
    """
    if len(name) > _SHOWN:
        name = f"{name[: _SHOWN // 2]}…{name[-_SHOWN // 2 + 1 :]}"
    return escaped(name)


def some_of(names: list[str]) -> str:
    """Name the first few, made fit for showing, and say how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(map(display_name, names[:_NAMED])) + (f" and {more} more" if more > 0 else "")
