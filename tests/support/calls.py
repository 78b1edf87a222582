"""Calls on an account's budget, as tests make them."""

from typing import Any

from finetune_queue.contract import JobRecord, WaitReason, new_job_id
from finetune_queue.store import Budget, CallClass, Change, JobStore, NoSlot, Slot, keys, room_score
from support.samples import sample_request

ANYTIME = 9e15
"""A score behind all jobs in a room: whoever asks with it goes last."""


def take(budget: Budget, holder: str = "h", score: float = ANYTIME, *, submit: bool = False) -> Slot:
    slot = budget.take("default", holder, score, submit=submit)
    assert isinstance(slot, Slot)
    return slot


def refused(budget: Budget, holder: str = "h", score: float = ANYTIME, *, submit: bool = False) -> NoSlot:
    slot = budget.take("default", holder, score, submit=submit)
    assert isinstance(slot, NoSlot)
    return slot


def parked(jobs: JobStore, call: CallClass = CallClass.SUBMIT, **fields: object) -> JobRecord:
    job, _ = jobs.register(new_job_id(), sample_request(**fields), delay=60)
    return jobs.transition(job, Change(delay=60, room_score=room_score(call, job)), waiting_for=WaitReason.API_SLOT)


def expire_slots(client: Any, count: int) -> None:
    """Let the slots that are free first be free now."""
    for member in client.zrange(keys.slots("default"), 0, count - 1):
        client.zadd(keys.slots("default"), {member: 0})
