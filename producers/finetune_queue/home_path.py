"""The ``~`` of a path that a person wrote, which a shell leaves alone inside quotes and in settings."""

from pathlib import Path


def home_path(text: str | Path) -> Path:
    """Return the path with ``~`` and ``~user`` expanded; of a user who is not here it stays as it was written."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # what pathlib raises for one
        return Path(text)
