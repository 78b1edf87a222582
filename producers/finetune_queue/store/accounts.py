"""The accounts: their limits as every worker sees them, and how they stand."""

import math
from dataclasses import dataclass
from typing import Any, Self, cast

import redis

from finetune_queue.contract import JobRecord
from finetune_queue.settings import AccountSettings
from finetune_queue.store import keys
from finetune_queue.store.clock import server_ms
from finetune_queue.store.room import CallClass, room_score_floor

_NO_SHARE = 1_000_000
"""The places for transfers of an account without ``max_transfers``: more than all workers together have."""


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """What an account may do: ``calls`` in any ``window`` of seconds, and caps, None for none. A training older than
    ``training_limit`` seconds does not count against ``max_training``."""

    calls: int
    window: float
    max_training: int | None = None
    max_submits_per_day: int | None = None
    max_transfers: int | None = None
    training_limit: float | None = None

    @classmethod
    def of(cls, account: AccountSettings, training_limit: float) -> Self:
        """Return the limits in an account's settings, with the ``training_limit`` of all accounts."""
        return cls(
            calls=account.rate_limit.calls,
            window=account.rate_limit.seconds,
            max_training=account.max_training,
            max_submits_per_day=account.max_submits_per_day,
            max_transfers=account.max_transfers,
            training_limit=training_limit,
        )

    def __str__(self) -> str:
        caps = {
            "trainings": self.max_training,
            "submits a day": self.max_submits_per_day,
            "transfers": self.max_transfers,
        }
        said = [f"{self.calls} calls per {self.window:g} s"]
        return ", ".join(said + [f"{cap} {what}" for what, cap in caps.items() if cap is not None])

    def strictest(self, other: Self) -> Self:
        """Return the limits under which both are kept."""
        lasts = (self.training_limit, other.training_limit)
        return type(self)(
            calls=min(self.calls, other.calls),
            window=max(self.window, other.window),
            max_training=_least(self.max_training, other.max_training),
            max_submits_per_day=_least(self.max_submits_per_day, other.max_submits_per_day),
            max_transfers=_least(self.max_transfers, other.max_transfers),
            training_limit=None if None in lasts else max(filter(None, lasts)),
        )


def _least(*caps: int | None) -> int | None:
    return min((cap for cap in caps if cap is not None), default=None)


@dataclass(frozen=True, slots=True)
class AccountStatus:
    """An account as ``finetune doctor`` and ``finetune status`` show it; times in seconds.

    A failed call pauses the account for ``paused_for``. After that one call tests whether Segmind is well, for
    ``tested_for`` at most, and all others wait. ``probing`` is true from the failure until a call succeeds.
    ``submits_paused_for``, ``submits_tested_for`` and ``submits_refused`` are the same for submits alone, after Segmind
    refused one. ``unwell`` is the code of the error that is behind either, empty if all is well; ``pause_reason`` says
    it to people.

    ``used`` counts the call slots in use. ``unlooked`` is for how long no sweep saw the account's trainings, None
    without any; ``usual_training`` how long one usually takes.
    """

    name: str
    limits: AccountLimits
    used: int
    waiting: int
    waiting_to_submit: int
    in_flight: int
    spent_today: int
    stopped: bool
    paused_for: float
    tested_for: float
    probing: bool
    submits_paused_for: float
    submits_tested_for: float
    submits_refused: bool
    pause_reason: str
    unwell: str
    unlooked: float | None
    usual_training: float | None

    @property
    def at_cap(self) -> bool:
        """Whether it has made as many submits as it may on this day (UTC)."""
        cap = self.limits.max_submits_per_day
        return cap is not None and self.spent_today >= cap

    @property
    def shut(self) -> bool:
        """Whether it is paused, or no call has succeeded since it was."""
        return self.probing or self.paused_for > 0

    @property
    def full(self) -> bool:
        """Whether it has as many trainings in flight as it may."""
        cap = self.limits.max_training
        return cap is not None and self.in_flight >= cap

    @property
    def submits_left(self) -> float:
        """How many more submits its caps leave room for now; infinity without any."""
        caps = (self.limits.max_submits_per_day, self.spent_today), (self.limits.max_training, self.in_flight)
        return min((max(0, cap - used) for cap, used in caps if cap is not None), default=math.inf)

    @property
    def submits_held(self) -> bool:
        """Whether submits wait for something other than a call."""
        return self.stopped or self.at_cap or self.full or self.submits_paused_for > 0

    @property
    def busy(self) -> bool:
        """Whether no slot is free and somebody waits for one; submits that wait for something else do not count."""
        held = self.waiting_to_submit if self.submits_held else 0
        return self.waiting > held and self.used >= self.limits.calls


class UnknownAccountError(Exception):
    """No worker serves this account."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"No worker serves the account '{name}' (known: {', '.join(known) or 'none'}).")


def transfers_of(account: str) -> str:
    """Return the name under which an account's transfers are counted: slots and a room like those of its API calls,
    with a window of 0, so that one account's uploads and downloads cannot take all workers."""
    return f"{account}:transfers"


class Accounts:
    """Reads and sets what is known of each account."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def configure(self, name: str, limits: AccountLimits) -> bool:
        """Set an account's limits for every worker, at once; returns whether that changed anything."""
        caps = {
            "max_training": limits.max_training,
            "max_submits": limits.max_submits_per_day,
            "max_transfers": limits.max_transfers,
            "training_limit_ms": None if limits.training_limit is None else int(limits.training_limit * 1000),
        }
        mapping: dict[Any, Any] = {
            "limit": str(limits.calls),
            "window_ms": str(round(limits.window * 1000)),  # int would make 64.1 s 64,099 ms
            **{field: "" if cap is None else str(cap) for field, cap in caps.items()},
        }
        look = self._redis.pipeline(transaction=False)
        look.hmget(keys.account(name), list(mapping))
        look.sismember(keys.accounts(), name)
        if look.execute() == [list(mapping.values()), 1]:
            return False
        pipe = self._redis.pipeline(transaction=True)
        pipe.sadd(keys.accounts(), name)
        pipe.hset(keys.account(name), mapping=mapping)
        # Set also without a cap: jobs may wait for a share from before, or a worker with older settings ask for one.
        share: dict[Any, Any] = {"limit": limits.max_transfers or _NO_SHARE, "window_ms": 0}
        pipe.hset(keys.account(transfers_of(name)), mapping=share)
        _wake(pipe)  # a higher limit has slots for those who wait
        pipe.execute()
        return True

    def names(self) -> list[str]:
        """Return the names of all accounts."""
        return sorted(cast("set[str]", self._redis.smembers(keys.accounts())))

    def stop_submits(self, account: str, *, stopped: bool) -> None:
        """Stop an account's submits (the kill switch), or let them go on. The latter also forgets that the provider
        refused submits: who resumes them says that the cause is fixed. Everything else goes on.

        Raises:
            UnknownAccountError: no worker has configured it.
        """
        if account not in self.names():
            raise UnknownAccountError(account, self.names())
        pipe = self._redis.pipeline(transaction=True)
        if stopped:
            pipe.hset(keys.account(account), "stopped", "1")
        else:
            forgotten = ["submits_paused_until", "submits_probe_until", "submits_probe", "submits_refused"]
            if not self._redis.hexists(keys.account(account), "probing"):
                forgotten += ["pause_reason", "pause_code"]
            pipe.hdel(keys.account(account), "stopped", *forgotten)
        _wake(pipe)
        pipe.execute()

    def held(self, account: str) -> int:
        """Return how many jobs need a worker with the account's key to go on: they wait for a call, or are tracked."""
        return len(cast("list[str]", self._redis.zunion([keys.room(account), keys.tracked(account)])))

    def place(self, job: JobRecord) -> int | None:
        """Return how many wait in front of the job in its account's waiting room, None if it does not wait there."""
        return cast("int | None", self._redis.zrank(keys.room(job.account), job.id))

    def slot_in(self, status: AccountStatus, ahead: int) -> float:
        """Return about how many seconds it takes until somebody with ``ahead`` in front gets a call slot."""
        now = server_ms(self._redis)
        calls, window = status.limits.calls, status.limits.window
        pipe = self._redis.pipeline(transaction=True)
        pipe.zrange(keys.slots(status.name), 0, -1, withscores=True)
        pipe.zcount(keys.room(status.name), "-inf", f"({room_score_floor(CallClass.PREPARE)}")
        taken, before_prepares = cast("tuple[list[tuple[str, float]], int]", tuple(pipe.execute()))
        if (prepares := ahead - before_prepares) > 0:
            # Each job ahead that waits to be prepared wants a submit soon after, which then goes first. Not so the last
            # half window of them, as half of a busy window's calls are submits. Submits that are held take no slot.
            ahead = prepares if status.submits_held else ahead + max(0, prepares - calls // 2)
        waits = [0.0] * (calls - len(taken)) + [max(0.0, (free - now) / 1000) for _, free in taken]
        rounds, place = divmod(ahead, calls)
        # Where more slots are taken than the limit, as it was lowered meanwhile, the first ones to end make no room.
        return max(status.paused_for, waits[-calls:][place] + rounds * window)

    def status(self, account: str) -> AccountStatus:
        """Return the account as it is now.

        Raises:
            UnknownAccountError: no worker has configured it.
        """
        now = server_ms(self._redis)
        pipe = self._redis.pipeline(transaction=True)
        pipe.hgetall(keys.account(account))
        pipe.zcount(keys.slots(account), f"({now}", "+inf")
        pipe.zcard(keys.room(account))
        pipe.zcount(keys.room(account), room_score_floor(CallClass.SUBMIT), f"({room_score_floor(CallClass.PREPARE)}")
        pipe.zcard(keys.tracked(account))
        pipe.zrange(keys.tracked(account), 0, 0, withscores=True)
        fields, used, waiting, waiting_to_submit, tracked, first = pipe.execute()
        if "limit" not in fields:
            raise UnknownAccountError(account, self.names())

        def number(name: str) -> int:
            return int(fields.get(name, "0"))

        def cap(name: str) -> int | None:
            return int(fields[name]) if fields.get(name) else None

        def left(name: str) -> float:
            return max(0, number(name) - now) / 1000

        paused_for, submits_paused_for = left("paused_until"), left("submits_paused_until")
        probing, submits_refused = fields.get("probing") == "1", "submits_refused" in fields

        # As take_slot.lua and reserve.lua count for the cap: what is tracked for longer waits for a person.
        in_flight, lasts_ms = tracked, cap("training_limit_ms")
        if lasts_ms is not None:
            in_flight = self._redis.zcount(keys.tracked(account), now - lasts_ms, "+inf")
        return AccountStatus(
            name=account,
            limits=AccountLimits(
                calls=number("limit"),
                window=number("window_ms") / 1000,
                max_training=cap("max_training"),
                max_submits_per_day=cap("max_submits"),
                max_transfers=cap("max_transfers"),
                training_limit=None if lasts_ms is None else lasts_ms / 1000,
            ),
            used=used,
            waiting=waiting,
            waiting_to_submit=waiting_to_submit,
            in_flight=in_flight,
            spent_today=number("spent") if now // 86_400_000 - number("spent_day") in {0, -1} else 0,
            stopped=fields.get("stopped") == "1",
            paused_for=paused_for,
            tested_for=left("probe_until") if probing and not paused_for else 0.0,
            probing=probing,
            submits_paused_for=submits_paused_for,
            submits_tested_for=left("submits_probe_until") if submits_refused and not submits_paused_for else 0.0,
            submits_refused=submits_refused,
            pause_reason=fields.get("pause_reason", ""),
            unwell=fields.get("pause_code", ""),
            unlooked=max(0.0, now - max(number("looked_at"), first[0][1])) / 1000 if first else None,
            usual_training=number("usual_ms") / 1000 or None,
        )


def _wake(pipe: "redis.client.Pipeline") -> None:
    pipe.lpush(keys.wake(), "1")
    pipe.ltrim(keys.wake(), 0, 0)
