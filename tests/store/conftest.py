import pytest
import redis

from finetune_queue.store import AccountLimits, Accounts, Budget, Deadlines, JobStore, SweepClock

HANDOVER = 2.0


@pytest.fixture
def jobs(client: redis.Redis) -> JobStore:
    return JobStore(client)


@pytest.fixture
def deadlines(client: redis.Redis) -> Deadlines:
    return Deadlines(client)


@pytest.fixture
def accounts(client: redis.Redis) -> Accounts:
    found = Accounts(client)
    found.configure("default", AccountLimits(calls=3, window=60.0))
    return found


@pytest.fixture
def sweep_clock(client: redis.Redis) -> SweepClock:
    return SweepClock(client)


@pytest.fixture
def budget(client: redis.Redis, accounts: Accounts) -> Budget:
    return Budget(client, call_timeout=5, handover=HANDOVER, first_sweep=10, backoff_base=1, backoff_max=8)
