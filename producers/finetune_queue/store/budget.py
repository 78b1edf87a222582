"""The account's budget of API calls: N slots per W seconds, shared by all workers, by the Redis server's clock.

A slot is free again W after the call that used it *ended*. Suppose some window of W seconds at the server held N + 1
arrivals. Consider the call that took its slot last. Each of the N others arrived within W before its arrival and ended
no earlier than it arrived, so each of their slots was still taken when the last one was granted: N slots were taken
and one more was granted, which :file:`lua/take_slot.lua` never does. (docs/budget.md has the long form.)
"""

import random
import uuid
from dataclasses import dataclass
from enum import IntEnum
from typing import cast

import redis

from finetune_queue.contract.job import Job, WaitReason
from finetune_queue.store import keys, scripts

SWEEP = "sweep"
"""The holder's name of an account's sweep, where a job has its id."""

_AGE_SPAN = 10**13  # more than any time in milliseconds until the year 2286


class CallClass(IntEnum):
    """What goes first in a waiting room: finish what was started before starting more."""

    FINISH = 0  # one call from its weights
    SUBMIT = 1
    PREPARE = 2  # presign an upload


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """What an account may do; None is no cap."""

    calls: int
    window: float
    max_training: int | None = None
    max_submits_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A slot in use: the call may start now."""

    account: str
    token: str
    submit: bool


@dataclass(frozen=True, slots=True)
class NoSlot:
    """No call may start: why, and how many wait in front."""

    reason: WaitReason
    ahead: int


@dataclass(frozen=True, slots=True)
class AccountStatus:
    """An account as ``finetune doctor`` and ``finetune status`` show it; times in seconds."""

    name: str
    limits: AccountLimits
    used: int
    waiting: int
    tracked: int
    spent_today: int
    stopped: bool
    paused_for: float
    pause_reason: str


class UnknownAccountError(Exception):
    """No worker serves this account."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"No worker serves the account '{name}' (known: {', '.join(known) or 'none'}).")


def room_score(call: CallClass, job: Job) -> float:
    """Return the job's place in its account's waiting room; lower goes first. Exact in a double."""
    return float((call * 10 + 9 - job.request.priority) * _AGE_SPAN + job.created_ms)


class Budget:
    """The slots, waiting rooms and pauses of all accounts."""

    def __init__(
        self, client: redis.Redis, *, call_timeout: float, handover: float, backoff_base: float, backoff_max: float
    ) -> None:
        """All times in seconds: ``call_timeout`` by when a call has ended for certain, ``handover`` how long a reserved
        slot waits for its holder, ``backoff_*`` the pause after an outage without a Retry-After."""
        self._redis = client
        self._call_timeout_ms = int(call_timeout * 1000)
        self._handover_ms = int(handover * 1000)
        self._backoff_ms = (int(backoff_base * 1000), int(backoff_max * 1000))
        self._take = scripts.load(client, "take_slot")
        self._end = scripts.load(client, "end_call")
        self._reserve = scripts.load(client, "reserve")

    def configure(self, name: str, limits: AccountLimits) -> None:
        """Set an account's limits for every worker, at once."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.sadd(keys.accounts(), name)
        pipe.hset(
            keys.account(name),
            mapping={
                "limit": limits.calls,
                "window_ms": int(limits.window * 1000),
                "max_training": "" if limits.max_training is None else limits.max_training,
                "max_submits": "" if limits.max_submits_per_day is None else limits.max_submits_per_day,
            },
        )
        pipe.execute()

    def accounts(self) -> list[str]:
        """Return the accounts that some worker configured."""
        return sorted(cast("set[str]", self._redis.smembers(keys.accounts())))

    def take(self, account: str, holder: str, score: float, *, submit: bool = False) -> Call | NoSlot:
        """Take a slot for a call that starts at once.

        Raises:
            UnknownAccountError: no worker has configured this account.
            redis.RedisError: Redis could not be asked, so no call may be made.
        """
        token = uuid.uuid4().hex
        reply = self._take(
            [keys.slots(account), keys.room(account), keys.account(account), keys.tracked(account)],
            [holder, token, score, self._call_timeout_ms, "1" if submit else "0"],
        )
        if reply[0] == 1:
            return Call(account, token, submit)
        if reply[1] == "unknown-account":
            raise UnknownAccountError(account, self.accounts())
        return NoSlot(WaitReason(reply[1]), int(reply[2]))

    def end(self, call: Call, *, refund: bool = False) -> None:
        """End a call after which the provider seems well. ``refund`` takes a submit that was not sent off the count."""
        self._finish(call, unwell=None, retry_after=None, refund=refund)

    def pause(self, call: Call, why: str, retry_after: float | None, *, refund: bool = False) -> float:
        """End a call that met a 429 or an outage and pause its account; returns for how many seconds."""
        return self._finish(call, unwell=why, retry_after=retry_after, refund=refund)

    def _finish(self, call: Call, *, unwell: str | None, retry_after: float | None, refund: bool) -> float:
        names = [keys.slots(call.account), keys.room(call.account), keys.account(call.account), keys.wake()]
        asked = "" if retry_after is None else str(int(retry_after * 1000))
        health = "well" if unwell is None else "unwell"
        jitter = random.random()  # noqa: S311 - spreads load, keeps no secret
        args = [call.token, health, asked, *self._backoff_ms, jitter, unwell or "", "1" if refund else "0"]
        return int(self._end(names, args)) / 1000

    def reserve(self, account: str, limit: int) -> tuple[list[str], float | None]:
        """Hand up to ``limit`` free slots to the account's sweep and to the first of its waiting room.

        Returns the holders, who must be started, and the seconds until there may be more to do, None if that takes
        a change that wakes the dispatcher.
        """
        submits = [room_score_floor(CallClass.SUBMIT), room_score_floor(CallClass.PREPARE)]
        reply = self._reserve(
            [
                keys.slots(account),
                keys.room(account),
                keys.account(account),
                keys.tracked(account),
                keys.deadlines(),
            ],
            [limit, self._handover_ms, *submits],
        )
        wait = int(reply[0])
        return reply[1:], None if wait < 0 else wait / 1000

    def next_sweep_in(self, account: str, seconds: float) -> None:
        """Set when the account is swept next."""
        server_seconds, micros = self._redis.time()
        at = server_seconds * 1000 + micros // 1000 + int(seconds * 1000)
        self._redis.hset(keys.account(account), "sweep_at", str(at))

    def place(self, job: Job) -> int | None:
        """Return how many wait in front of the job in its account's waiting room, None if it does not wait there."""
        return cast("int | None", self._redis.zrank(keys.room(job.account), job.id))

    def status(self, account: str) -> AccountStatus:
        """Return the account as it is now.

        Raises:
            UnknownAccountError: no worker has configured it.
        """
        seconds, micros = self._redis.time()
        now = seconds * 1000 + micros // 1000
        pipe = self._redis.pipeline(transaction=True)
        pipe.hgetall(keys.account(account))
        pipe.zcount(keys.slots(account), f"({now}", "+inf")
        pipe.zcard(keys.room(account))
        pipe.zcard(keys.tracked(account))
        fields, used, waiting, tracked = pipe.execute()
        if "limit" not in fields:
            raise UnknownAccountError(account, self.accounts())

        def number(name: str) -> int:
            return int(fields.get(name, "0"))

        return AccountStatus(
            name=account,
            limits=AccountLimits(
                calls=number("limit"),
                window=number("window_ms") / 1000,
                max_training=int(fields["max_training"]) if fields["max_training"] else None,
                max_submits_per_day=int(fields["max_submits"]) if fields["max_submits"] else None,
            ),
            used=used,
            waiting=waiting,
            tracked=tracked,
            spent_today=number("spent") if number("spent_day") == now // 86_400_000 else 0,
            stopped=fields.get("stopped") == "1",
            paused_for=max(0, number("paused_until") - now) / 1000,
            pause_reason=fields.get("pause_reason", ""),
        )


def room_score_floor(call: CallClass) -> int:
    """Return the lowest score of a class of calls."""
    return call * 10 * _AGE_SPAN
