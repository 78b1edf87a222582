"""When each account is swept next: as its last sweep said, or sooner if a hint came."""

import redis

from finetune_queue.store import keys, scripts


class SweepClock:
    """Sets when the accounts are swept; who hands a sweep out and takes its slot is the budget."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._clock = scripts.load(client, "sweep_clock")

    def sweep_now(self, account: str) -> None:
        """Have the account swept as soon as it has a free call, and none of its sweeps is under way."""
        self._tell("now", account)

    def swept(
        self, account: str, interval: float, *, idle: float, affordable: float, gap: float, looked: bool = True
    ) -> None:
        """Set the next sweep after one has ended: in ``interval`` seconds, or in what is left of ``gap`` since it
        started if a hint came meanwhile. When nobody waits for a call it comes after ``idle`` already.
        ``affordable`` is the time between sweeps that uses up the calls which looking may have; hints cannot make it
        less. ``looked`` tells whether it saw what Segmind has."""
        times = (int(each * 1000) for each in (interval, affordable, gap))
        self._tell("swept", account, *times, int(looked), int(idle * 1000))

    def hint(self, account: str) -> float | None:
        """Take a word from outside that a training may have moved: bring the next sweep forward, if it may be.

        However many hints come, sweeps take no more than their share of the account's calls, so what sends them need
        not be trusted. Returns the seconds until the next sweep, None when no training is looked at.
        """
        wait = self._tell("hint", account)
        return None if wait < 0 else wait

    def learn_training(self, account: str, seconds: float) -> None:
        """Set how long the account's trainings usually take."""
        self._redis.hset(keys.account(account), "usual_ms", str(int(seconds * 1000)))

    def _tell(self, what: str, account: str, *args: int) -> float:
        return int(self._clock([keys.account(account), keys.tracked(account), keys.wake()], [what, *args])) / 1000
