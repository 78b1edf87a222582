"""How long to wait before something is tried again."""

import random

from finetune_queue.settings import Settings

_MOST_DOUBLINGS = 60
"""2.0 ** n overflows a float for large n."""


def backoff(failures: int, *, base: float, longest: float) -> float:
    """Return the seconds to wait after ``failures`` in a row, 1 or more: about ``base``, twice as long each time up to
    ``longest``, and random, so that not all who met the same trouble come back at once."""
    wait = min(longest, base * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))
    return wait * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret


def try_again_in(settings: Settings, failures: int, asked: float = 0.0) -> float:
    """Return the seconds until the next try of a job, or at a sink, after ``failures`` in a row, by the settings; and
    not before the ``asked`` ones are over, after which not all who were asked to wait come back at once either."""
    own = backoff(failures, base=settings.finetune_backoff_base, longest=settings.finetune_backoff_max)
    return max(own, asked * random.uniform(1.0, 1.25))  # noqa: S311 - the same
