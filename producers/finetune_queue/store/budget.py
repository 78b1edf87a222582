"""The account's budget of API calls: N slots per W seconds, shared by all workers, by the Redis server's clock.

A slot is free again W after the call that used it *ended*. Suppose some window of W seconds at the server held N + 1
arrivals. Consider the call that took its slot last. Each of the N others arrived within W before its arrival and ended
no earlier than it arrived, so each of their slots was still taken when the last one was granted: N slots were taken
and one more was granted, which :file:`lua/take_slot.lua` never does. (docs/budget.md has the long form.)
"""

import random
import time
import uuid
from dataclasses import dataclass
from typing import Self

import redis

from finetune_queue.contract.job import JobRecord, WaitReason
from finetune_queue.settings import Settings
from finetune_queue.store import keys, scripts
from finetune_queue.store.accounts import Accounts, UnknownAccountError
from finetune_queue.store.errors import AlreadySweptError, ConflictError
from finetune_queue.store.room import CallClass, room_score_floor

SWEEP = "sweep"
"""The name under which an account's sweep holds a slot, in place of a job's id; the scripts spell it, too."""

CALL_MARGIN = 10.0
"""Seconds beyond its own time-out after which a call has ended for certain."""

START_WITHIN = 5.0
"""Seconds that may pass between taking a slot and the start of its call. A process that was stopped longer must
not send: its slot, or its job, may be another's by then."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot in use: the call may start now. ``asked`` is the monotonic time before the slot was taken, ``at_ms`` the
    Redis server's time when it was."""

    account: str
    token: str
    submit: bool
    asked: float
    at_ms: int

    @property
    def stale(self) -> bool:
        """Whether it was taken too long ago: its call may not start any more."""
        return time.monotonic() - self.asked > START_WITHIN


@dataclass(frozen=True, slots=True)
class NoSlot:
    """No call may start: why, and how many wait in front; ``stopped``: it waits for the end of the kill switch."""

    reason: WaitReason
    ahead: int
    stopped: bool = False


class Budget:
    """The slots, waiting rooms and pauses of all accounts."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        call_timeout: float,
        handover: float,
        first_sweep: float,
        backoff_base: float,
        backoff_max: float,
    ) -> None:
        """Make the budget of all accounts; all times in seconds.

        ``call_timeout`` is the time after which a call has ended for certain, ``handover`` how long a reserved slot
        waits for its holder, ``first_sweep`` how long after a first submit the account is swept at the earliest.
        ``backoff_base`` is the pause after a failure without a Retry-After; it doubles with each in a row, up to
        ``backoff_max``.
        """
        self._accounts = Accounts(client)
        self._call_timeout_ms = int(call_timeout * 1000)
        self._handover_ms = int(handover * 1000)
        self._first_sweep_ms = int(first_sweep * 1000)
        self._backoff_ms = (int(backoff_base * 1000), int(backoff_max * 1000))
        self._take = scripts.load(client, "take_slot")
        self._end = scripts.load(client, "end_call")
        self._extend = scripts.load(client, "extend_call")
        self._reserve = scripts.load(client, "reserve")
        self._wants_sweep = scripts.load(client, "wants_sweep")

    @classmethod
    def of_calls(cls, client: redis.Redis, settings: Settings) -> Self:
        """Make the budget of the accounts' API calls, by the settings."""
        return cls(
            client,
            call_timeout=settings.segmind_call_timeout + CALL_MARGIN,
            handover=settings.finetune_handover,
            first_sweep=settings.finetune_poll_min_interval,
            backoff_base=settings.finetune_backoff_base,
            backoff_max=settings.finetune_backoff_max,
        )

    @classmethod
    def of_transfers(cls, client: redis.Redis, settings: Settings) -> Self:
        """Make the budget of transfers, which bounds each account's uploads and downloads at once. Nothing is swept or
        paused there, and a slot is free once its transfer has ended. Name its accounts by :func:`transfers_of`."""
        timeout, handover = settings.finetune_lease, settings.finetune_handover
        return cls(client, call_timeout=timeout, handover=handover, first_sweep=0, backoff_base=0, backoff_max=0)

    def take(
        self, account: str, holder: str, score: float, *, submit: bool = False, claimed: JobRecord | None = None
    ) -> Slot | NoSlot:
        """Take a slot for a call that starts at once. ``score`` is the holder's place in the waiting room. For a
        ``claimed`` job only if it is still at that version: a worker whose job was taken over would add an ended job
        to those that Segmind works on.

        Raises:
            ConflictError: the claim was lost; nothing was taken.
            UnknownAccountError: no worker has configured this account.
            redis.RedisError: Redis could not be asked, so no call may be made.
        """
        return self._take_slot(account, holder, score, submit=submit, claimed=claimed)

    def take_to_sweep(self, account: str, timeout: float) -> Slot | NoSlot:
        """Take a slot for a sweep of the account that starts at once. No other sweep starts until this one is reported
        as ended (:meth:`SweepClock.swept`), or until ``timeout`` seconds are over and it counts as dead.

        Raises:
            AlreadySweptError: another one is under way, or ended since this one was handed out.
            UnknownAccountError, redis.RedisError: as :meth:`take`.
        """
        return self._take_slot(account, SWEEP, 0.0, sweep_ms=int(timeout * 1000))

    def _take_slot(
        self,
        account: str,
        holder: str,
        score: float,
        *,
        submit: bool = False,
        claimed: JobRecord | None = None,
        sweep_ms: int = 0,
    ) -> Slot | NoSlot:
        token = uuid.uuid4().hex
        asked = time.monotonic()
        reply = self._take(
            [keys.slots(account), keys.room(account), keys.account(account), keys.tracked(account), keys.job(holder)],
            [
                *(holder, token, score, self._call_timeout_ms, "1" if submit else "0", self._first_sweep_ms),
                "" if claimed is None else claimed.version,
                sweep_ms,
            ],
        )
        if claimed is not None and reply[0] == -1:
            raise ConflictError(claimed, reply[1])
        if reply[0] == -2:
            raise AlreadySweptError(account)
        if reply[0] == 1:
            return Slot(account, token, submit, asked, int(reply[1]))
        if reply[1] == "unknown-account":
            raise UnknownAccountError(account, self._accounts.names())
        return NoSlot(WaitReason(reply[1]), int(reply[2]), stopped=len(reply) > 3)

    def wants_sweep(self, account: str) -> bool:
        """Tell whether the sweep that was handed out last still has to be made. Somebody else may yet be faster to take
        its slot."""
        return bool(self._wants_sweep([keys.slots(account), keys.account(account)], []))

    def extend(self, slot: Slot, seconds: float) -> bool:
        """Keep the slot of a transfer that makes progress for ``seconds`` from now; False if the slot was free again
        already, and may be another's."""
        names = [keys.slots(slot.account), keys.account(slot.account)]
        return bool(self._extend(names, [slot.token, int(seconds * 1000)]))

    def end(self, slot: Slot, *, refund: bool = False) -> None:
        """End a call after which the provider seems well. ``refund`` takes a submit that started nothing off its day's
        count."""
        self._finish(slot, "well", refund=refund)

    def end_without_news(self, slot: Slot, *, under_way: bool = False) -> None:
        """End a call that shows nothing of the provider's health: it was not sent, or went to another host. If it was
        the one that tests a paused account, another may. ``under_way``: it was given up and may still reach the
        provider."""
        self._finish(slot, "unsent", refund=slot.submit, under_way=under_way)

    def pause(
        self,
        slot: Slot,
        why: str,
        retry_after: float | None,
        *,
        code: str = "outage",
        refund: bool = False,
        under_way: bool = False,
    ) -> float:
        """End a call that met a 429 or an outage and pause its account; returns for how many seconds. ``why`` is for
        people, ``code`` for programs. ``under_way``: it was given up and may still reach the provider."""
        return self._finish(
            slot, "unwell", refund=refund, why=why, code=code, retry_after=retry_after, under_way=under_way
        )

    def refuse_submits(self, slot: Slot, why: str, retry_after: float | None, *, code: str) -> float:
        """End a submit that started nothing, as the provider refuses its account, and pause the account's submits: all
        else goes on. Returns for how many seconds."""
        return self._finish(slot, "refused", refund=True, why=why, code=code, retry_after=retry_after)

    def _finish(
        self,
        slot: Slot,
        health: str,
        *,
        refund: bool,
        why: str = "",
        retry_after: float | None = None,
        code: str = "",
        under_way: bool = False,
    ) -> float:
        names = [keys.slots(slot.account), keys.room(slot.account), keys.account(slot.account), keys.wake()]
        asked = "" if retry_after is None else str(int(retry_after * 1000))
        jitter = random.random()  # noqa: S311 - spreads load, keeps no secret
        flags = [slot.at_ms if refund else "", code, "1" if under_way else "0", "1" if slot.submit else "0"]
        args = [slot.token, health, asked, *self._backoff_ms, jitter, why, *flags]
        return int(self._end(names, args)) / 1000

    def reserve(self, account: str, limit: int, *, prepare: bool = True) -> tuple[list[str], float | None]:
        """Hand up to ``limit`` free slots to the account's sweep and to the first in its waiting room; with ``prepare``
        also to jobs that are only to be prepared (:attr:`CallClass.PREPARE`).

        Returns the holders, which the caller has to start, and the seconds until there may be more to hand out, None if
        only a change can bring that, which wakes the dispatcher.
        """
        submits, prepares = room_score_floor(CallClass.SUBMIT), room_score_floor(CallClass.PREPARE)
        reply = self._reserve(
            [
                keys.slots(account),
                keys.room(account),
                keys.account(account),
                keys.tracked(account),
                keys.deadlines(),
            ],
            [limit, self._handover_ms, submits, prepares, "+inf" if prepare else f"({prepares}"],
        )
        wait = int(reply[0])
        return reply[1:], None if wait < 0 else wait / 1000
