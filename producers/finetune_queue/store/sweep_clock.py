"""When each account is swept next: as its last sweep said, or sooner if a hint came."""

import redis

from finetune_queue.store import keys, scripts


class SweepClock:
    """Sets when each account is swept next. The budget hands sweeps out when they are due, and gives them slots."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._clock = scripts.load(client, "sweep_clock")

    def sweep_now(self, account: str) -> None:
        """Have the account swept as soon as it has a free call, and none of its sweeps is under way."""
        self._tell("now", account)

    def swept(
        self, account: str, interval: float, *, idle: float, affordable: float, gap: float, looked: bool = True
    ) -> None:
        """Set the next sweep after one has ended; all times in seconds.

        It comes after ``interval``, or after ``idle`` when nobody waits for a call. If a hint came meanwhile, it may
        come from ``gap`` after the start of the last one on. ``affordable`` is the time between sweeps that uses up the
        share of calls for looking; hints cannot bring more sweeps than that. ``looked``: the sweep saw what Segmind
        has.
        """
        times = (int(each * 1000) for each in (interval, affordable, gap))
        self._tell("swept", account, *times, int(looked), int(idle * 1000))

    def hint(self, account: str) -> float | None:
        """Take a hint from outside that a training may have changed: bring the next sweep forward, if that is allowed.

        However many hints come, sweeps take no more than their share of the account's calls, so their sender need not
        be trusted. Returns the seconds until the next sweep, None when the account has no training to look at.
        """
        wait = self._tell("hint", account)
        return None if wait < 0 else wait

    def learn_training(self, account: str, seconds: float) -> None:
        """Set how long the account's trainings usually take."""
        self._redis.hset(keys.account(account), "usual_ms", str(int(seconds * 1000)))

    def _tell(self, what: str, account: str, *args: int) -> float:
        return int(self._clock([keys.account(account), keys.tracked(account), keys.wake()], [what, *args])) / 1000
