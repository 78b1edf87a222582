"""Why a job is not moving: by its record, the state of its account, and the workers that give signs of life."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from finetune_queue.contract import JobRecord, JobState, Stage, WaitReason
from finetune_queue.store import Accounts, Deadlines, UnknownAccountError, Workers, unserved

TAKEN_UP = 5.0
"""Seconds within which a free worker has begun with what it was sent."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a job is not moving.

    ``ahead`` counts the jobs in front of it. ``estimate`` is in seconds; None if nobody can tell, also while one call
    tests whether a paused account is well again. ``submits_stopped`` tells the two causes of ``spending`` apart: the
    kill switch, or else the account's cap on submits for the day. ``unserved``: whatever the reason, the job waits for
    ever, as no running worker has its account's key. ``no_worker``: no worker is running at all. ``pause_reason`` is
    why the account is paused, for the reason ``paused``, and for ``provider`` if the pause keeps sweeps from looking.
    """

    reason: WaitReason
    ahead: int
    estimate: float | None
    submits_stopped: bool = False
    unserved: bool = False
    pause_reason: str = ""
    no_worker: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON shows it."""
        return {
            "reason": self.reason,
            "ahead": self.ahead,
            "estimate_seconds": self.estimate,
            "submits_stopped": self.submits_stopped,
            "unserved": self.unserved,
            "no_worker": self.no_worker,
            "pause_reason": self.pause_reason or None,
        }


def why_waiting(record: JobRecord, accounts: Accounts, workers: Workers, deadlines: Deadlines) -> Waiting | None:
    """Tell why a job is not moving; None if it moves, has ended or needs attention."""
    reason = record.waiting_for
    if reason is None and (record.state.terminal or record.state is JobState.NEEDS_ATTENTION or record.owner):
        return None
    alive = workers.alive()
    no_worker = not alive and not record.state.terminal
    if reason is None:
        since = datetime.now(UTC).timestamp() - record.updated_ms / 1000
        lies = no_worker or since > TAKEN_UP
        return Waiting(WaitReason.WORKER, 0, None, no_worker=no_worker) if lies else None
    if unserved(record.account, alive):
        return Waiting(reason, 0, None, unserved=True)
    if reason is WaitReason.START:
        return Waiting(reason, 0, deadlines.left(record.id), no_worker=no_worker)
    return replace(_parked(record, reason, accounts), no_worker=no_worker)


def _parked(record: JobRecord, reason: WaitReason, accounts: Accounts) -> Waiting:
    """Tell what a parked job waits for by now: the account may have been paused since, or be well again."""
    if reason in (WaitReason.SPENDING, WaitReason.TRAININGS, WaitReason.PAUSED):  # judged anew from the account, below
        reason = WaitReason.API_SLOT
    ahead = accounts.place(record)
    if ahead is None and reason is not WaitReason.PROVIDER:
        return Waiting(reason, 0, None)
    try:
        account = accounts.status(record.account)
    except UnknownAccountError:
        return Waiting(reason, ahead or 0, None)
    if ahead is None:  # it waits for Segmind, which the account's sweeps ask
        return Waiting(reason, 0, None, pause_reason=account.pause_reason if account.shut else "")
    paused_for, tested_for = account.paused_for, account.tested_for
    if record.stage is Stage.SUBMIT:
        if account.stopped or account.at_cap:
            return Waiting(WaitReason.SPENDING, ahead, None, submits_stopped=account.stopped)
        if account.full:
            return Waiting(WaitReason.TRAININGS, ahead, None)
        paused_for = max(paused_for, account.submits_paused_for)
        tested_for = max(tested_for, account.submits_tested_for)
    seconds = max(paused_for, accounts.slot_in(account, ahead))
    if paused_for:
        return Waiting(WaitReason.PAUSED, ahead, seconds, pause_reason=account.pause_reason)
    if tested_for:
        return Waiting(WaitReason.PAUSED, ahead, None, pause_reason=account.pause_reason)
    capped = record.stage is Stage.SUBMIT and ahead >= account.submits_left  # those in front take all that is left
    return Waiting(reason, ahead, None if capped else seconds)
