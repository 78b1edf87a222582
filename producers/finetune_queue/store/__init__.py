"""The only package that talks to Redis: keys, scripts, the job store and the accounts' budget."""

from finetune_queue.store.budget import (
    SWEEP,
    AccountLimits,
    AccountStatus,
    Budget,
    Call,
    CallClass,
    NoSlot,
    UnknownAccountError,
    room_score,
)
from finetune_queue.store.connection import connect
from finetune_queue.store.deadlines import Deadlines
from finetune_queue.store.jobs import (
    Change,
    ConflictError,
    IdempotencyError,
    JobNotFoundError,
    JobStore,
    NotDurableError,
    OwnedElsewhereError,
    StoreError,
)

__all__ = [
    "SWEEP",
    "AccountLimits",
    "AccountStatus",
    "Budget",
    "Call",
    "CallClass",
    "Change",
    "ConflictError",
    "Deadlines",
    "IdempotencyError",
    "JobNotFoundError",
    "JobStore",
    "NoSlot",
    "NotDurableError",
    "OwnedElsewhereError",
    "StoreError",
    "UnknownAccountError",
    "connect",
    "room_score",
]
