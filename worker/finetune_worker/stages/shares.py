"""An account's share of the workers' transfers: where it has one, an upload or download takes a place in it first."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import structlog

from finetune_queue.contract import JobRecord, WaitReason
from finetune_queue.store import CallClass, NoSlot, RedisError, Slot, room_score, transfers_of
from finetune_worker.container import Container
from finetune_worker.stages.calls import PARKED
from finetune_worker.stages.claim import Claim
from finetune_worker.stages.outcome import Wait

log = structlog.get_logger(__name__)


class NoShareError(Exception):
    """The account's share is taken; ``wait`` is the outcome of the stage."""

    def __init__(self, wait: Wait) -> None:
        super().__init__(wait.sentence)
        self.wait = wait


@contextmanager
def transfer_share(container: Container, claim: Claim, call: CallClass) -> Iterator[None]:
    """Hold a place in the account's share of the transfers, if it has one; each hold of the job renews the place.

    Raises:
        NoShareError: there is none free.
    """
    job = claim.job
    if not has_share(container, job):
        yield
        return
    slot = container.transfers.take(transfers_of(job.account), job.id, room_score(call, job))
    if isinstance(slot, NoSlot):
        raise NoShareError(park_for_transfer(job, call, slot.ahead))
    claim.on_hold = partial(_keep, container, slot)
    try:
        yield
    finally:
        claim.on_hold = None
        _end(container, slot)


def has_share(container: Container, job: JobRecord) -> bool:
    """Tell whether the job's account is held to a share of the transfers."""
    account = container.settings.accounts.get(job.account)
    return account is not None and account.max_transfers is not None


def park_for_transfer(job: JobRecord, call: CallClass, ahead: int) -> Wait:
    """Wait in the account's room for transfers."""
    sentence = f"parked: the account's share of transfers is in use{f', {ahead} ahead' if ahead else ''}"
    return Wait(sentence, WaitReason.TRANSFER, PARKED, room_score=room_score(call, job), for_transfer=True)


def _keep(container: Container, slot: Slot, seconds: float) -> None:
    if not container.transfers.extend(slot, seconds):
        # This worker stood still for longer than it holds the job. The transfer goes on all the same: to start it again
        # would take the workers' time and the host's twice.
        log.warning("transfer_share_lost", account=slot.account)


def _end(container: Container, slot: Slot) -> None:
    try:
        container.transfers.end(slot)
    except RedisError as error:
        log.warning("transfer_share_not_given_back", account=slot.account, error=str(error))  # it ends by itself
