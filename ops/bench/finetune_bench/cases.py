"""The situations that the contestants are put in, at compressed time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """One situation; times in (compressed) seconds. ``scale`` is how many times faster than life it is.

    With a ``backlog`` so many jobs wait that the rate at which they finish can be told.
    """

    name: str
    title: str
    jobs: int
    calls: int
    window: float
    training: float
    scale: float
    list_has_urls: bool = True
    backlog: bool = False
    contestants: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        """Calls a second that the account allows."""
        return self.calls / self.window

    @property
    def ceiling(self) -> float:
        """Jobs a second that can at best be done: each takes a presign and a submit."""
        return self.rate / 2

    @property
    def shortest(self) -> float:
        """Seconds that all jobs take at best: two calls each at the limit's rate, then the last one's training."""
        return self.jobs / self.ceiling + self.training

    @property
    def patience(self) -> float:
        """Seconds after which a contestant that is not done is stopped."""
        return 1.5 * self.shortest + 5.0


ALL = ("tutorial", "rate-limit", "careful", "ours-1", "ours-4", "ours-8")

FULL = (
    Case(
        name="mixed",
        title="200 jobs, 50 calls per 6 s, trainings of 120 s, the list has the weights' URL",
        jobs=200,
        calls=50,
        window=6.0,
        training=120.0,
        scale=10.0,
        contestants=ALL,
    ),
    Case(
        name="details",
        title="200 jobs, 50 calls per 6 s, trainings of 120 s, only the details have the weights' URL",
        jobs=200,
        calls=50,
        window=6.0,
        training=120.0,
        scale=10.0,
        list_has_urls=False,
        contestants=("ours-4",),
    ),
    Case(
        name="backlog",
        title="600 jobs, 50 calls per 6 s, trainings of 10 s: a backlog",
        jobs=600,
        calls=50,
        window=6.0,
        training=10.0,
        scale=10.0,
        backlog=True,
        contestants=ALL,
    ),
    Case(
        name="free",
        title="30 jobs, 5 calls per 2 s, trainings of 40 s: the free plan",
        jobs=30,
        calls=5,
        window=2.0,
        training=40.0,
        scale=30.0,
        contestants=ALL,
    ),
)

QUICK = (
    Case(
        name="quick",
        title="24 jobs, 12 calls per 3 s, trainings of 6 s",
        jobs=24,
        calls=12,
        window=3.0,
        training=6.0,
        scale=20.0,
        contestants=("tutorial", "careful", "ours-1"),
    ),
)

CASES = {case.name: case for case in (*FULL, *QUICK)}

POLL_EVERY = 30.0
"""Seconds (in life) between a tutorial's looks at a job; the least for the careful worker."""

OUR_POLL_MIN_INTERVAL = 10.0
"""FINETUNE_POLL_MIN_INTERVAL's default, in life."""
