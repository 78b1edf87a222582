"""One API call within the account's budget: take a slot, call, end the slot by how the call went."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import structlog

from finetune_queue.contract import JobRecord, WaitReason
from finetune_queue.store import START_WITHIN, Budget, CallClass, NoSlot, RedisError, Slot, room_score
from finetune_worker.backoff import try_again_in
from finetune_worker.container import Container
from finetune_worker.segmind.client import SegmindClient
from finetune_worker.segmind.errors import (
    OF_THE_ACCOUNT,
    MalformedReply,
    NotSent,
    OutcomeUnknown,
    RateLimited,
    Rejected,
    SegmindError,
    Unavailable,
)
from finetune_worker.stages.claim import Claim
from finetune_worker.stages.errors import from_api
from finetune_worker.stages.outcome import Fail, Retry, Wait, after_error

log = structlog.get_logger(__name__)

T = TypeVar("T")

OTHERS_TRY = 1.0
"""Seconds after a pause in which its account's other jobs try whether Segmind is well again."""

PARKED = 3600.0
"""The deadline (s) of a job that is parked in a waiting room: a safety net, as its turn there comes much earlier."""


class StaleCallError(Exception):
    """This process stood still after it took its slot, so nothing was sent."""


class AccountPausedError(Exception):
    """The call met a 429 or an outage, and the account is paused. ``error`` is what the client made of it."""

    def __init__(self, error: SegmindError, seconds: float) -> None:
        super().__init__(error.detail)
        self.error = error
        self.seconds = seconds


def longest_call(container: Container) -> float:
    """Return the longest time from taking a slot to the end of its call, in seconds. The job, or the account's sweep,
    is held for that long: if it was taken over during the call, the call would be made twice, and a living worker
    counted as dead."""
    return START_WITHIN + container.settings.segmind_call_timeout


def ask(
    container: Container, claim: Claim, call: CallClass, what: str, function: Callable[[SegmindClient], T]
) -> T | Wait | Retry | Fail:
    """As :func:`ask_or_raise`, but turn a refusal, or a reply that cannot be read, into the end of the stage."""
    try:
        return ask_or_raise(container, claim, call, what, function)
    except (Rejected, MalformedReply) as error:
        return after_error(from_api(error, claim.job.stage))


def ask_or_raise(
    container: Container, claim: Claim, call: CallClass, what: str, function: Callable[[SegmindClient], T]
) -> T | Wait | Retry:
    """Make one API call for the claimed job, and return what it gave; or the outcome by which the job waits for it.

    ``function`` makes exactly one call, which may be repeated; ``what`` says for people what it is for ("ask for an
    upload URL"). The job waits in the account's room for a slot, or for the end of the account's pause. After an outage
    it waits by itself, longer each time: in the room it would be first again after each pause, and a call that fails
    for this job alone would keep all others of its account from theirs.

    Raises:
        ConflictError: the claim was lost.
        StaleCallError, SegmindError: see :func:`call_api`.
    """
    client = container.segmind(claim.job.account)  # before the slot, as this worker may have no key for the account
    claim.hold(longest_call(container))
    job = claim.job
    slot = container.budget.take(job.account, job.id, room_score(call, job))
    if isinstance(slot, NoSlot):
        return park(job, call, slot, what)
    try:
        return call_api(container.budget, slot, partial(function, client))
    except AccountPausedError as paused:
        if isinstance(paused.error, Unavailable):
            error = from_api(paused.error, job.stage)
            return Retry(error, after=after_outage(container, job, paused.seconds), outage=True)
        return park_paused(job, call, paused, what)


def park(job: JobRecord, call: CallClass, slot: NoSlot, what: str) -> Wait:
    """Wait in the account's room for a slot for ``what``."""
    ahead = f", {slot.ahead} ahead" if slot.ahead else ""
    spending = "the account's submits are stopped" if slot.stopped else "the account has no submits left for today"
    sentence = {
        WaitReason.API_SLOT: f"parked: waiting for an API slot to {what}{ahead}",
        WaitReason.PAUSED: f"parked: the account is paused; next: {what}{ahead}",
        WaitReason.SPENDING: f"parked: {spending}{ahead}",
        WaitReason.TRAININGS: f"parked: the account has as many trainings in flight as allowed{ahead}",
    }[slot.reason]
    return Wait(sentence, slot.reason, PARKED, room_score=room_score(call, job))


def park_paused(job: JobRecord, call: CallClass, paused: AccountPausedError, what: str) -> Wait:
    """Wait in the account's room for its pause to end; an outage uses no attempt."""
    sentence = f"parked: {paused.error.detail} The account is paused for {paused.seconds:.0f} s; next: {what}"
    return Wait(sentence, WaitReason.PAUSED, PARKED, room_score=room_score(call, job))


def after_outage(container: Container, job: JobRecord, pause: float) -> float:
    """Return the seconds until a job whose call met an outage makes it again: not before other jobs of the account,
    which was paused for ``pause`` seconds, have tried theirs."""
    return max(pause + OTHERS_TRY, try_again_in(container.settings, job.outages + 1))


def call_api(budget: Budget, slot: Slot, function: Callable[[], T]) -> T:
    """Run ``function``, which makes exactly one API call, in ``slot``.

    Raises:
        AccountPausedError: a 429 or an outage; the account is paused.
        StaleCallError: too long since the slot was taken; nothing was sent.
        SegmindError: any other error of the call. After a refusal of the account it, or its submits alone, are paused.
    """
    if slot.stale:
        give_back(budget, slot)
        raise StaleCallError
    try:
        result = function()
    except (RateLimited, NotSent, Unavailable) as error:
        unsent = not isinstance(error, Unavailable)
        raise AccountPausedError(error, _pause(budget, slot, error, refund=slot.submit and unsent)) from error
    except OutcomeUnknown as error:
        _pause(budget, slot, error, refund=False)
        raise
    except Rejected as error:
        if error.code in OF_THE_ACCOUNT:
            # The account is refused, not this job: hold the others back instead of failing them one by one.
            if slot.submit:
                _refuse_submits(budget, slot, error)
            else:
                _pause(budget, slot, error, refund=False)
        elif error.code == "not_found":
            give_back(budget, slot)  # another API at this address would say it, too
        else:
            _end(budget, slot, refund=slot.submit)
        raise
    except SegmindError:
        _end(budget, slot, refund=False)
        raise
    _end(budget, slot, refund=False)
    return result


def _pause(budget: Budget, slot: Slot, error: SegmindError, *, refund: bool) -> float:
    seconds = 0.0
    with _going_on(slot):
        seconds = budget.pause(
            slot, error.detail, error.retry_after, code=error.code, refund=refund, under_way=error.under_way
        )
        log.warning(
            "account_paused", account=slot.account, seconds=round(seconds, 1), code=error.code, why=error.detail
        )
    return seconds


def _refuse_submits(budget: Budget, slot: Slot, error: SegmindError) -> None:
    with _going_on(slot):
        seconds = budget.refuse_submits(slot, error.detail, error.retry_after, code=error.code)
        log.warning(
            "submits_paused", account=slot.account, seconds=round(seconds, 1), code=error.code, why=error.detail
        )


def _end(budget: Budget, slot: Slot, *, refund: bool) -> None:
    with _going_on(slot):
        budget.end(slot, refund=refund)


def give_back(budget: Budget, slot: Slot) -> None:
    """Give back the slot of a call that was not sent, or whose answer does not show whether Segmind is well."""
    with _going_on(slot):
        budget.end_without_news(slot)


@contextmanager
def _going_on(slot: Slot) -> Iterator[None]:
    """Let the call's answer be used although Redis does not take the slot's end: the slot ends by its time-out."""
    try:
        yield
    except RedisError as trouble:
        log.warning("slot_not_ended", account=slot.account, error=str(trouble))
