"""Segmind's webhooks: hints that bring a look forward within its share, whatever is sent by whoever."""

import asyncio
import threading
import time

import httpx
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from finetune_queue.gateway import hints
from finetune_queue.gateway.hook_paths import hook_path, hook_token
from finetune_queue.store import SWEEP, Accounts, Budget, RedisError, SweepClock, keys
from gateway.serving import HOOK_SECRET, MakeSettings, Start
from support.samples import sample
from support.until import until

PATH = hook_path(SecretStr(HOOK_SECRET), "default")
PAYLOAD = {"event_type": "FINETUNE", "status": "TRAINING_COMPLETED", "trained_model_url": "https://evil.example/x"}


@pytest.fixture
def anybody(url: str) -> httpx.Client:
    """Somebody without a token."""
    return httpx.Client(base_url=url, timeout=30, trust_env=False)


@pytest.fixture(autouse=True)
def _closed(anybody: httpx.Client) -> object:
    with anybody:
        yield


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a hook be told of soon after that of the test before; a flood is told of ten times a second."""
    monkeypatch.setattr(hints, "APART", 0.1)


def next_sweep(client: redis.Redis) -> float:
    """Return the seconds until the account's next sweep."""
    at = float(str(client.hget(keys.account("default"), "sweep_at") or 0))
    return at / 1000 - float(str(client.time()[0]))


@pytest.fixture
def swept(client: redis.Redis, account: Accounts) -> SweepClock:
    """An account with a training, swept a while ago and again in 200 seconds."""
    client.zadd(keys.tracked("default"), {"a-job": 1})
    found = SweepClock(client)
    found.swept("default", 200, idle=200, affordable=150, gap=5)
    seconds = int(str(client.time()[0]))
    client.hset(
        keys.account("default"), mapping={"swept_at": (seconds - 100) * 1000, "sweep_due": (seconds + 150) * 1000}
    )
    return found


def test_a_hook_brings_the_next_sweep_forward(anybody: httpx.Client, client: redis.Redis, swept: SweepClock) -> None:
    assert next_sweep(client) > 190
    reply = anybody.post(PATH, json=PAYLOAD)
    assert (reply.status_code, reply.content) == (202, b"")
    until(lambda: next_sweep(client) < 2, seconds=30)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b"\xff\xfe\x00", b'{"status": {"deep": []}}', b"x" * 65_000, b"[" * 60_000],
    ids=lambda body: repr(body[:10]),
)
def test_the_shape_of_a_payload_does_not_matter(
    anybody: httpx.Client, client: redis.Redis, swept: SweepClock, body: bytes
) -> None:
    assert anybody.post(PATH, content=body, headers={"Content-Type": "what/ever"}).status_code == 202
    until(lambda: next_sweep(client) < 2, seconds=30)


def test_a_payload_has_a_limit(anybody: httpx.Client, client: redis.Redis, swept: SweepClock) -> None:
    assert anybody.post(PATH, content=b"x" * 65_537).status_code == 413
    assert next_sweep(client) > 190


@pytest.mark.parametrize(
    "path",
    [
        PATH[:-1],
        PATH + "A",
        PATH.swapcase(),
        f"/hooks/default/{HOOK_SECRET}",
        "/hooks/default/",
        "/hooks/default/%00",
        "/hooks/default/é",
        f"/hooks/other/{PATH.rpartition('/')[2]}",
        f"/hooks/..%2fdefault/{PATH.rpartition('/')[2]}",
        f"/hooks//{hook_token(SecretStr(HOOK_SECRET), '')}x",
    ],
)
def test_every_other_path_is_as_if_it_were_not_there(
    anybody: httpx.Client, client: redis.Redis, swept: SweepClock, path: str
) -> None:
    reply = anybody.post(path, json=PAYLOAD)
    assert (reply.status_code, reply.json()["code"]) == (404, "not-found")
    assert next_sweep(client) > 190


def test_nobody_can_tell_which_accounts_there_are(anybody: httpx.Client) -> None:
    wrong, unknown = (anybody.post(f"/hooks/{account}/nothing", json=PAYLOAD) for account in ("default", "other"))
    assert wrong.status_code == 404
    assert {**wrong.json(), "instance": ""} == {**unknown.json(), "instance": ""}


def test_without_a_secret_there_are_no_hooks(make_settings: MakeSettings, start: Start) -> None:
    url = start(make_settings(finetune_hook_secret=None))
    assert httpx.post(url + PATH, trust_env=False).status_code == 404


def test_only_a_post_is_a_hook(anybody: httpx.Client, client: redis.Redis, swept: SweepClock) -> None:
    for method in ("GET", "PUT", "DELETE"):
        assert anybody.request(method, PATH).status_code == 405
    assert next_sweep(client) > 190


def test_a_flood_of_hooks_costs_one_sweep_ahead_of_its_time(
    anybody: httpx.Client, client: redis.Redis, swept: SweepClock, budget_sweeps: list[float]
) -> None:
    with httpx.Client(base_url=str(anybody.base_url), timeout=30, trust_env=False) as other:
        flooding = threading.Thread(target=lambda: [other.post(PATH, json=PAYLOAD) for _ in range(150)])
        flooding.start()
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            anybody.post(PATH, content=b"forged")
        flooding.join()
    # 150 s apart is the account's share; one may come early.
    assert len(budget_sweeps) == 1
    assert next_sweep(client) > 60


@pytest.fixture
def budget_sweeps(client: redis.Redis, swept: SweepClock) -> object:
    """Sweeps the account whenever it is due, as a worker does, and lists when."""
    found: list[float] = []
    stop = threading.Event()
    budget = Budget(client, call_timeout=5, handover=2, first_sweep=10, backoff_base=1, backoff_max=8)

    def worker() -> None:
        while not stop.wait(0.05):
            if SWEEP in budget.reserve("default", 10)[0]:
                found.append(time.monotonic())
                swept.swept("default", 200, idle=200, affordable=150, gap=5)

    thread = threading.Thread(target=worker)
    thread.start()
    yield found
    stop.set()
    thread.join()


def test_hooks_change_no_job(anybody: httpx.Client, http: httpx.Client, swept: SweepClock) -> None:
    job = http.get(http.post("/v1/jobs", json=sample()).json()["links"]["self"]).json()
    for status in ("AVAILABLE", "FAILED", "TRAINING_COMPLETED"):
        anybody.post(PATH, json={"request_id": job["job_id"], "finetune_id": "x", "status": status})
    after = http.get(job["links"]["self"]).json()
    assert {**after, "waiting": None} == {**job, "waiting": None}


def test_a_hook_is_taken_while_redis_is_away(make_settings: MakeSettings, start: Start) -> None:
    url = start(make_settings(finetune_redis_url="redis://127.0.0.1:1/0"))
    assert httpx.post(url + PATH, trust_env=False).status_code == 202
    assert httpx.get(f"{url}/livez", trust_env=False).status_code == 200


def test_the_token_is_in_no_log(anybody: httpx.Client, swept: SweepClock, capsys: pytest.CaptureFixture[str]) -> None:
    anybody.post(PATH, json=PAYLOAD)
    anybody.post(PATH + "x", json=PAYLOAD)
    said = capsys.readouterr().out
    assert "/hooks/{account}/{token}" in said
    assert PATH.rpartition("/")[2] not in said


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(account=st.text(min_size=1), other=st.text(min_size=1))
def test_each_account_has_a_path_of_its_own(account: str, other: str) -> None:
    secret = SecretStr(HOOK_SECRET)
    try:
        tokens = hook_token(secret, account), hook_token(secret, other)
    except UnicodeEncodeError:
        return  # a lone surrogate is no account's name
    assert (tokens[0] == tokens[1]) == (account == other)
    assert len(tokens[0]) == 43


def test_hints_are_told_apart_in_time_and_the_last_one_always_is() -> None:
    told: list[float] = []

    def hint(_account: str) -> float | None:
        told.append(time.monotonic())
        if len(told) == 1:
            raise RedisError("away")
        return 1.0

    async def run() -> None:
        found = hints.Hints(hint)
        for _ in range(100):
            found.take("default")
        await asyncio.gather(*found._tasks.values())
        assert len(told) == 2, "the first was lost with Redis, and others came after it"
        assert told[1] - told[0] >= 0.1
        found.take("default")
        await asyncio.gather(*found._tasks.values())
        assert len(told) == 3
        await found.close()

    asyncio.run(run())
