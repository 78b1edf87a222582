"""How long until an account's trainings are looked at again. A look costs an API call; the longer the time between two
looks, the later it is noticed that a training has ended.

How late is too late depends on how long the training ran: a minute is little after half an hour, and much after two
minutes.
"""

from collections.abc import Iterable, Sequence

from finetune_queue.contract import JobRecord
from finetune_queue.store import AccountLimits

LATE = 0.1
"""The share of its running time by which a training's end may be noticed late when nothing better is known."""

NEAR = 0.02
"""The same for trainings that end as usual, as a share of the usual time."""

EARLIEST = 0.75
"""The share of the usual time before which hardly any training ends."""

GLANCES = 8
"""How many looks to spread over the usual time, for the steps on the way and for early failures."""

CALM = 1 / 3
"""A sweep comes, if the calls allow it, within this share of the time after which unseen trainings are asked for alone,
however little there may be to see."""

UNSEEN = 2 / 3
"""A sweep comes, whatever it costs, within this share of that time."""


def affordable(limits: AccountLimits, *, busy: bool, busy_share: float) -> float:
    """Return the seconds between two looks if these use up the calls that looking may have: ``busy_share`` of all while
    other work waits for calls, else half."""
    return limits.window / limits.calls / (busy_share if busy else 0.5)


def interval(
    running: Sequence[float], *, usual: float | None, affordable_every: float, shortest: float, unseen_limit: float
) -> float:
    """Return the seconds until the next look at an account; all times in seconds.

    ``running`` is for how long each training has run, ``usual`` the account's usual training time, ``affordable_every``
    what :func:`affordable` says. After ``unseen_limit`` without a look a training is asked for alone.
    """
    oldest = max(running, default=0.0)  # once, and not for each of some ten thousand
    worth = min((_worth_in(age, oldest, usual) for age in running), default=shortest)
    # Before `unseen_limit` is over for the trainings: then each of them would be asked for alone, with its own call.
    bearable = min(UNSEEN * unseen_limit, affordable_every)
    return max(shortest, bearable, min(CALM * unseen_limit, worth))


def _worth_in(age: float, oldest: float, usual: float | None) -> float:
    if usual is None:
        return LATE * oldest  # the youngest will hardly end before the oldest did
    near = NEAR * usual
    if age < EARLIEST * usual:
        return max(near, min(EARLIEST * usual - age, usual / GLANCES))
    return near + LATE * max(0.0, age - usual)


def usual_time(known: float | None, seen: Iterable[float]) -> float | None:
    """Return an account's usual training time after trainings of the given lengths were seen to end.

    Each length includes the delay until it was noticed, so the shortest counts; longer ones move it slowly.
    """
    shortest = min(seen, default=None)
    if shortest is None or known is None:
        return known if shortest is None else shortest
    return min(shortest, 0.9 * known + 0.1 * shortest)


def began_ms(job: JobRecord) -> int:
    """Return since when (ms) the job's training, or what follows it, has run."""
    return job.entered_ms if job.weights is not None else job.submitted_ms or job.intent_ms or job.entered_ms
