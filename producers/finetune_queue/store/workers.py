"""Which workers are there: each says so now and then, and takes itself off when it stops."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Literal, Self, cast

import redis

from finetune_queue.store import keys
from finetune_queue.store.accounts import AccountLimits, Accounts, AccountStatus, UnknownAccountError
from finetune_queue.store.clock import server_ms

Api = Literal["sandbox", "paid"]
"""Which API a worker calls, and so whose the jobs on its Redis are."""

GONE = 35.0
"""Seconds without a sign after which a worker counts as gone; it gives one every 10."""

_GONE_MS = int(GONE * 1000)

_NOTED = 86_400
"""Seconds for which the note is kept that Redis came back without its data."""

_CLOCK, _LIMITS, _KEY, _NODE = "clock=", "limits=", "key=", "node="
"""What the words of a member begin with that name no account: an account's name has no ``=``."""


@dataclass(frozen=True, slots=True)
class LiveWorker:
    """A worker as it shows itself to others. ``accounts`` are those that it has a key for; ``clock_off`` is by how many
    seconds its clock was ahead of Redis' when it started, 0 if it was near enough; ``limits`` are those of its own
    settings, by account; ``key_prints`` are a few letters of a hash of each account's key and API, just enough to tell
    different ones apart; ``node`` is what Celery calls it.
    """

    name: str
    version: str
    accounts: tuple[str, ...] = ()
    clock_off: int = 0
    limits: tuple[tuple[str, AccountLimits], ...] = ()
    key_prints: tuple[tuple[str, str], ...] = ()
    node: str = ""

    @property
    def shown(self) -> str:
        """What people know it by: its name in Celery's answers, logs and Flower; of an older version, ``name``."""
        return self.node or self.name

    @property
    def member(self) -> str:
        """Its member of the sorted set: words separated by spaces, the version and name first."""
        clock = [f"{_CLOCK}{self.clock_off}"] if self.clock_off else []
        limits = [f"{_LIMITS}{account}:{_written(own)}" for account, own in self.limits]
        prints = [f"{_KEY}{account}:{print_}" for account, print_ in self.key_prints]
        node = [f"{_NODE}{self.node}"] if self.node and " " not in self.node else []
        return " ".join([self.version, self.name, *self.accounts, *clock, *limits, *prints, *node])

    @classmethod
    def of_member(cls, member: str) -> Self:
        """Read a worker from its :attr:`member`, which may be an older version's."""
        version, name, *rest = member.split(" ")
        accounts = tuple(each for each in rest if "=" not in each)
        clock_off = next((int(each.removeprefix(_CLOCK)) for each in rest if each.startswith(_CLOCK)), 0)
        limits = tuple((account, _read(text)) for account, text in _said(_LIMITS, rest))
        node = next((each.removeprefix(_NODE) for each in rest if each.startswith(_NODE)), "")
        return cls(name, version, accounts, clock_off, limits, tuple(_said(_KEY, rest)), node)


def _said(mark: str, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the account and the text of each word that begins with the mark and has the form ``MARKaccount:text``."""
    for word in words:
        if word.startswith(mark):
            account, _, text = word.removeprefix(mark).partition(":")
            yield account, text


def _written(limits: AccountLimits) -> str:
    return ":".join("" if value is None else str(value) for value in astuple(limits))


def _read(text: str) -> AccountLimits:
    # A later version may add fields, an earlier one lacks the last.
    calls, window, *rest = text.split(":")
    training, submits, transfers = (int(cap) if cap else None for cap in rest[:3])
    lasts = float(rest[3]) if rest[3:] and rest[3] else None
    return AccountLimits(int(calls), float(window), training, submits, transfers, lasts)


def limits_by_worker(account: str, workers: Sequence[LiveWorker]) -> dict[str, AccountLimits]:
    """Return the limits of an account in each worker's settings, by the worker's name. Of several workers of one name,
    as when a container was started again, the last in ``workers`` counts."""
    return {worker.name: limits for worker in workers for name, limits in worker.limits if name == account}


def key_prints_by_worker(account: str, workers: Sequence[LiveWorker]) -> dict[str, str]:
    """Return the print of an account's key and API at each worker, by the worker's name."""
    return {worker.name: print_ for worker in workers for name, print_ in worker.key_prints if name == account}


def unserved(account: str, workers: Sequence[LiveWorker]) -> bool:
    """Tell whether there are workers, but none with the account's key. A worker of an older version does not say which
    keys it has, and so may have any."""
    return bool(workers) and all(worker.accounts and account not in worker.accounts for worker in workers)


def accounts_in_use(accounts: Accounts, workers: Sequence[LiveWorker]) -> list[AccountStatus]:
    """Return how each account stands, without those that were taken out of all settings and that no job needs: nothing
    would end their trouble.

    Raises:
        redis.RedisError: Redis is out of reach.
    """
    found = []
    for name in accounts.names():
        if unserved(name, workers) and not accounts.held(name):
            continue
        with suppress(UnknownAccountError):
            found.append(accounts.status(name))
    return found


class Workers:
    """The workers that gave a sign of life lately, by the Redis server's clock."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def seen(self, worker: LiveWorker, api: Api | None = None) -> str:
        """Give a sign of life, and note the ``api`` that the worker calls if Redis has lost that. Returns the random
        name of the data in this Redis: another one than before if Redis came back without its data."""
        pipe = self._redis.pipeline(transaction=False)
        if api is not None:
            pipe.set(keys.api(), api, nx=True)
        pipe.zadd(keys.workers(), {worker.member: server_ms(self._redis)})
        pipe.set(keys.data_id(), uuid.uuid4().hex, nx=True)
        pipe.get(keys.data_id())
        return cast("str", pipe.execute()[-1])

    def note_emptied(self) -> None:
        """Note for a day that this Redis came back without its data."""
        self._redis.set(keys.emptied(), server_ms(self._redis), nx=True, ex=_NOTED)

    def emptied_ms(self) -> int | None:
        """Return when it was noted that this Redis came back without its data, None if that is long ago or never."""
        found = cast("str | None", self._redis.get(keys.emptied()))
        return None if found is None else int(found)

    def left(self, worker: LiveWorker) -> None:
        """Say that the worker stops."""
        self._redis.zrem(keys.workers(), worker.member)

    def forget_gone(self) -> None:
        """Forget the workers that went without a word. Only to be called after watching for ``GONE`` seconds: just
        after an outage of Redis all workers' last signs are old."""
        self._redis.zremrangebyscore(keys.workers(), "-inf", server_ms(self._redis) - _GONE_MS)

    def alive(self) -> list[LiveWorker]:
        """Return the workers that are there."""
        return self._since(server_ms(self._redis) - _GONE_MS)

    def not_forgotten(self) -> list[LiveWorker]:
        """Return the workers that gave a sign and were not forgotten since, the one with the latest sign last."""
        return self._since("-inf")

    def _since(self, first: int | str) -> list[LiveWorker]:
        found = cast("list[str]", self._redis.zrangebyscore(keys.workers(), first, "+inf"))
        return [LiveWorker.of_member(member) for member in found]
