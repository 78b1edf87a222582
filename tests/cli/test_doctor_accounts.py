"""``finetune doctor``: what it says of accounts, and of workers whose settings of one differ."""

from collections.abc import Iterator

import pytest

from finetune_queue import __version__
from finetune_queue.contract import JobState
from finetune_queue.store import (
    AccountLimits,
    Accounts,
    Budget,
    CallClass,
    LiveWorker,
    Slot,
    Workers,
    connect,
    note_api,
)
from finetune_queue.store.workers import Api
from support.cli import Run, Worker, checks
from support.until import until


def test_accounts_as_the_workers_know_them(run: Run, worker: Worker) -> None:
    worker.announce(calls=50, window=60)
    worker.bring(worker.accept(), JobState.TRAINING)
    account = checks(run("doctor", "--json"))["account default"]
    assert account["status"] == "ok"
    assert account["message"] == "0 of 50 calls per 60 s in use, 0 jobs waiting, 1 training, 0 submits today"


@pytest.fixture
def budget(worker: Worker, queue_url: str) -> Iterator[Budget]:
    worker.announce()
    with connect(queue_url) as client:
        yield Budget(client, call_timeout=5, handover=5, first_sweep=5, backoff_base=1, backoff_max=8)


def a_call(budget: Budget, *, submit: bool = False) -> Slot:
    call = budget.take("default", "someone", float(CallClass.SUBMIT), submit=submit)
    assert isinstance(call, Slot)
    return call


def test_an_account_that_is_paused(run: Run, budget: Budget) -> None:
    budget.pause(a_call(budget, submit=True), "Segmind answered 429.", 30.0, code="rate_limited")
    account = checks(run("doctor", "--json"))["account default"]
    assert account["status"] == "warn"
    assert "Segmind answered 429." in account["message"]
    assert account["message"].endswith("1 submit today")
    assert "lower its rate_limit" in account["action"]


def test_an_account_whose_calls_are_refused_after_every_pause(run: Run, worker: Worker, budget: Budget) -> None:
    budget.pause(a_call(budget), "Segmind does not know the key.", 0.01, code="api_key_rejected")
    until(lambda: not worker.accounts.status("default").paused_for, seconds=30)
    account = checks(run("doctor", "--json"))["account default"]
    assert account["status"] == "warn"
    assert account["message"].startswith("no call has succeeded since: Segmind does not know the key.")

    a_call(budget)
    account = checks(run("doctor", "--json"))["account default"]
    assert account["status"] == "warn"
    assert account["message"].startswith("paused while one call tests it: Segmind does not know the key.")


def test_an_account_whose_submits_alone_are_refused(run: Run, worker: Worker, budget: Budget) -> None:
    budget.refuse_submits(a_call(budget, submit=True), "There are no credits left.", 0.01, code="credits_exhausted")
    until(lambda: not worker.accounts.status("default").submits_paused_for, seconds=30)
    budget.end(a_call(budget))  # shows nothing of submits
    account = checks(run("doctor", "--json"))["account default"]
    assert account["status"] == "warn"
    assert account["message"].startswith("no submit has succeeded since: There are no credits left.")
    assert account["action"].endswith("accepts clears this, or `finetune account resume default`.")

    a_call(budget, submit=True)
    account = checks(run("doctor", "--json"))["account default"]
    assert account["message"].startswith("submits are paused while one tests whether Segmind takes them: There are no")


def test_all_that_holds_an_account_back_is_named(run: Run, worker: Worker, budget: Budget) -> None:
    capped = AccountLimits(calls=50, window=60, max_submits_per_day=1)
    worker.accounts.configure("default", capped)
    budget.end(a_call(budget, submit=True))
    budget.pause(a_call(budget), "Segmind does not know the key.", 30.0, code="api_key_rejected")
    worker.accounts.stop_submits("default", stopped=True)
    account = checks(run("doctor", "--json"))["account default"]
    assert account["message"].startswith("submits are stopped; no submits are left for today; paused for ")
    assert account["message"].endswith("1 of 1 submits today")
    for action in ("account resume default", "a higher cap", "It resumes by itself"):
        assert action in account["action"]


def test_workers_whose_settings_differ(run: Run, queue_url: str) -> None:
    with connect(queue_url) as client:
        Accounts(client).configure("default", AccountLimits(calls=5, window=60))
        workers = Workers(client)
        workers.seen(LiveWorker("a:1", __version__, ("default",), limits=(("default", AccountLimits(5, 60)),)))
        assert "limits default" not in checks(run("doctor", "--json"))
        capped = AccountLimits(50, 60, max_training=10, max_submits_per_day=57)
        workers.seen(LiveWorker("b:1", __version__, ("default",), limits=(("default", capped),), node="w2@b"))
    found = checks(run("doctor", "--json"))["limits default"]
    assert found["status"] == "warn"
    one, other = "a:1 has 5 calls per 60 s", "w2@b has 50 calls per 60 s, 10 trainings, 57 submits a day"
    assert found["message"] == f"the settings of the workers differ: {one}; {other}"


@pytest.mark.parametrize(
    ("api", "workers_api", "cap", "bounded"),
    [
        ("https://api.segmind.com", "paid", None, False),
        ("https://api.segmind.com", "paid", 20, True),
        ("https://api.segmind.com", "paid", 0, True),
        ("https://api.segmind.com", None, None, False),
        ("http://127.0.0.1:8000", None, None, True),
        ("https://api.segmind.com", "sandbox", None, True),
        ("http://127.0.0.1:8000", "paid", None, False),
    ],
)
def test_an_account_that_may_spend_without_end(
    *,
    run: Run,
    queue_url: str,
    monkeypatch: pytest.MonkeyPatch,
    api: str,
    workers_api: Api | None,
    cap: int | None,
    bounded: bool,
) -> None:
    monkeypatch.setenv("SEGMIND_BASE_URL", api)
    with connect(queue_url) as client:
        if workers_api is not None:
            note_api(client, workers_api)
        Accounts(client).configure("default", AccountLimits(calls=5, window=60, max_submits_per_day=cap))
        Workers(client).seen(LiveWorker("a:1", __version__, ("default",)))
    found = checks(run("doctor", "--json"))
    assert ("cap default" not in found) == bounded
    if not bounded:
        assert found["cap default"]["status"] == "warn"
        assert "SEGMIND_MAX_SUBMITS_PER_DAY" in found["cap default"]["action"]


def test_workers_with_other_keys_for_one_account(run: Run, worker: Worker, queue_url: str) -> None:
    worker.announce()
    with connect(queue_url) as client:
        workers = Workers(client)
        for name, key_print in (("a:1", "0a1b2c"), ("c:1", "0a1b2c"), ("old:1", "")):
            prints = (("default", key_print),) if key_print else ()
            workers.seen(LiveWorker(name, __version__, ("default",), key_prints=prints))
        assert "keys default" not in checks(run("doctor", "--json"))
        workers.seen(LiveWorker("b:1", __version__, ("default",), key_prints=(("default", "d3e4f5"),)))
    found = checks(run("doctor", "--json"))["keys default"]
    assert found["status"] == "warn"
    assert found["message"] == "the workers have different keys for it, or call different APIs: a:1, c:1; b:1"
    assert "not_found" in found["action"]
