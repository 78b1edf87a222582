"""Everything that the service keeps in Redis: keys, scripts, the job store and the accounts' budget.

Also redis-py's errors that callers of the store handle.
"""

from redis import AuthenticationError, OutOfMemoryError, RedisError, ResponseError

from finetune_queue.store.accounts import AccountLimits, Accounts, AccountStatus, UnknownAccountError, transfers_of
from finetune_queue.store.budget import CALL_MARGIN, START_WITHIN, SWEEP, Budget, NoSlot, Slot
from finetune_queue.store.connection import TakesPing, connect, database_of
from finetune_queue.store.counters import (
    API_CALL_SECONDS,
    API_CALLS,
    COUNTED,
    DELIVERIES,
    JOB_SECONDS,
    LOST_MESSAGES,
    PAID_TWICE,
    STAGE_SECONDS,
    TAKEOVERS,
    TRANSFERRED_BYTES,
    UNKNOWN_STATUSES,
    Counted,
    Counters,
    Metric,
)
from finetune_queue.store.dead_letters import DeadLetter, DeadLetters, LostDelivery, RawMessage, TaskCall
from finetune_queue.store.deadlines import Deadlines
from finetune_queue.store.errors import (
    AlreadySweptError,
    ConflictError,
    IdempotencyError,
    JobNotFoundError,
    NotDurableError,
    OwnedElsewhereError,
    UnreadableJobError,
)
from finetune_queue.store.feed import PLACE, Feed
from finetune_queue.store.jobs import JobStore
from finetune_queue.store.listing import CURSOR, CursorError, JobPages
from finetune_queue.store.local_queues import MOST_WAITING, LocalQueues, QueueFullError
from finetune_queue.store.outbox import (
    Attempt,
    Hold,
    HoldLostError,
    Outbox,
    PutOff,
    SetBackError,
    Standing,
    Subject,
)
from finetune_queue.store.overview import Overview, StateView, StoreView
from finetune_queue.store.rejections import Rejections
from finetune_queue.store.retention import Retention
from finetune_queue.store.room import CallClass, room_score
from finetune_queue.store.server import (
    MOST_SKEW,
    ServerFacts,
    clock_skew,
    disk_trouble,
    refuses_writes,
    server_facts,
    server_problems,
    silence,
)
from finetune_queue.store.sink_lines import SinkLines, SinksView, SinkWait
from finetune_queue.store.sweep_clock import SweepClock
from finetune_queue.store.which_api import OtherApi, note_api, noted_api
from finetune_queue.store.workers import (
    LiveWorker,
    Workers,
    accounts_in_use,
    key_prints_by_worker,
    limits_by_worker,
    unserved,
)
from finetune_queue.store.write import Change

__all__ = [
    "API_CALLS",
    "API_CALL_SECONDS",
    "CALL_MARGIN",
    "COUNTED",
    "CURSOR",
    "DELIVERIES",
    "JOB_SECONDS",
    "LOST_MESSAGES",
    "MOST_SKEW",
    "MOST_WAITING",
    "PAID_TWICE",
    "PLACE",
    "STAGE_SECONDS",
    "START_WITHIN",
    "SWEEP",
    "TAKEOVERS",
    "TRANSFERRED_BYTES",
    "UNKNOWN_STATUSES",
    "AccountLimits",
    "AccountStatus",
    "Accounts",
    "AlreadySweptError",
    "Attempt",
    "AuthenticationError",
    "Budget",
    "CallClass",
    "Change",
    "ConflictError",
    "Counted",
    "Counters",
    "CursorError",
    "DeadLetter",
    "DeadLetters",
    "Deadlines",
    "Feed",
    "Hold",
    "HoldLostError",
    "IdempotencyError",
    "JobNotFoundError",
    "JobPages",
    "JobStore",
    "LiveWorker",
    "LocalQueues",
    "LostDelivery",
    "Metric",
    "NoSlot",
    "NotDurableError",
    "OtherApi",
    "OutOfMemoryError",
    "Outbox",
    "Overview",
    "OwnedElsewhereError",
    "PutOff",
    "QueueFullError",
    "RawMessage",
    "RedisError",
    "Rejections",
    "ResponseError",
    "Retention",
    "ServerFacts",
    "SetBackError",
    "SinkLines",
    "SinkWait",
    "SinksView",
    "Slot",
    "Standing",
    "StateView",
    "StoreView",
    "Subject",
    "SweepClock",
    "TakesPing",
    "TaskCall",
    "UnknownAccountError",
    "UnreadableJobError",
    "Workers",
    "accounts_in_use",
    "clock_skew",
    "connect",
    "database_of",
    "disk_trouble",
    "key_prints_by_worker",
    "limits_by_worker",
    "note_api",
    "noted_api",
    "refuses_writes",
    "room_score",
    "server_facts",
    "server_problems",
    "silence",
    "transfers_of",
    "unserved",
]
