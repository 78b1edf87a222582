"""What long work on bytes calls to say how far it is."""

from collections.abc import Callable

OnProgress = Callable[[int, int | None], None]
"""Called with the bytes done and in all (None: not known). What it raises ends the work and reaches the caller."""
