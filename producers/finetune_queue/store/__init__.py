"""The only package that talks to Redis: keys, scripts, the job store and the accounts' budget."""

from redis import RedisError

from finetune_queue.store.accounts import AccountLimits, Accounts, AccountStatus, UnknownAccountError, transfer_line
from finetune_queue.store.budget import SWEEP, Budget, Call, CallClass, NoSlot, room_score
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
from finetune_queue.store.server import ServerFacts, server_facts

__all__ = [
    "SWEEP",
    "AccountLimits",
    "AccountStatus",
    "Accounts",
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
    "RedisError",
    "ServerFacts",
    "StoreError",
    "UnknownAccountError",
    "connect",
    "room_score",
    "server_facts",
    "transfer_line",
]
