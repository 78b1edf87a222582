"""``finetune doctor --api`` against the sandbox: what it asks, what it finds, and that it keeps to the budget."""

import json
import re
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import redis

from finetune_queue.cli.output import ExitCode
from finetune_queue.store import AccountLimits, Accounts, Budget, Slot, connect, keys
from finetune_worker.segmind.client import SegmindClient
from segmind_sandbox.testing import LiveSandbox
from support.cli import Result, Run
from support.until import until

GATEWAY = "http://127.0.0.1:9"
ASKED = ("key default", "credits default", "limit default", "webhook default", "segmind clock")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_queue.cli.segmind.GRACE", 0.1)


def asked(result: Result) -> dict[str, dict[str, Any]]:
    """What was found with Segmind's help."""
    found = {check["name"]: check for check in result.json["checks"]}
    return {name: check for name, check in found.items() if name.startswith("api") or name in ASKED}


def api_calls(sandbox: LiveSandbox) -> int:
    return sum(account["calls"] for account in sandbox.control.report()["accounts"].values())


def test_all_is_well(run: Run, sandbox: LiveSandbox, queue_url: str) -> None:
    assert run("webhooks", "register", GATEWAY).code == 0
    sandbox.control.reset("report")
    found = asked(run("doctor", "--api", "--json"))
    assert {name: check["status"] for name, check in found.items()} == dict.fromkeys(ASKED, "ok")
    assert found["credits default"]["message"] == "100,000.00 left"
    assert f"Segmind calls {GATEWAY}/hooks/default/..." in found["webhook default"]["message"]
    with connect(queue_url) as client:
        # Two calls of the doctor, two of the registration: each has a slot.
        assert (api_calls(sandbox), client.zcard(keys.slots("default"))) == (2, 4)


def test_without_the_flag_segmind_is_not_asked(run: Run, sandbox: LiveSandbox) -> None:
    assert asked(run("doctor", "--json")) == {}
    assert api_calls(sandbox) == 0


def test_a_key_that_is_refused(run: Run, sandbox: LiveSandbox, queue_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGMIND_API_KEY", "SG_wrong_0123456789")
    result = run("doctor", "--api", "--json")
    found = asked(result)
    assert result.code == ExitCode.FAILED
    assert found.keys() == {"key default", "segmind clock"}
    assert found["key default"]["status"] == "fail"
    assert "Invalid API key" in found["key default"]["message"]
    assert "SEGMIND_API_KEY" in found["key default"]["action"]
    assert "SG_wrong_0123456789" not in result.out + result.err
    with connect(queue_url) as client:
        # The workers' key may be right: their calls go on.
        assert Accounts(client).status("default").paused_for == 0


def test_an_address_that_is_not_the_apis(run: Run, sandbox: LiveSandbox) -> None:
    sandbox.control.add_fault(op="credits", kind="http_error", status=404)
    result = run("doctor", "--api", "--json")
    check = asked(result)["api default"]
    assert (result.code, check["status"]) == (ExitCode.FAILED, "fail")
    assert "Correct SEGMIND_BASE_URL" in check["action"]


def test_no_credits(run: Run, sandbox: LiveSandbox) -> None:
    sandbox.control.change_settings(credits=0)
    result = run("doctor", "--api", "--json")
    check = asked(result)["credits default"]
    assert (result.code, check["status"], check["message"]) == (ExitCode.FAILED, "fail", "none are left")
    assert "Add credits" in check["action"]


def test_a_limit_that_segmind_does_not_grant(run: Run, sandbox: LiveSandbox, queue_url: str) -> None:
    sandbox.control.add_fault(op="credits", kind="rate_limited", retry_after=20)
    result = run("doctor", "--api", "--json")
    found = asked(result)
    assert (result.code, found["limit default"]["status"]) == (ExitCode.FAILED, "fail")
    assert "Lower SEGMIND_RATE_LIMIT" in found["limit default"]["action"]
    with connect(queue_url) as client:
        assert Accounts(client).status("default").paused_for > 10


@pytest.mark.usefixtures("sandbox")
def test_a_limit_that_workers_do_not_keep_to(run: Run, queue_url: str) -> None:
    with connect(queue_url) as client:
        Accounts(client).configure("default", AccountLimits(calls=5, window=60))
    check = asked(run("doctor", "--api", "--json"))["limit default"]
    assert check["status"] == "warn"
    assert check["message"] == "workers keep to 5 calls per 60 s, these settings say 50/60"


def test_where_no_worker_was_yet_the_account_has_its_caps_too(
    run: Run, sandbox: LiveSandbox, queue_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SEGMIND_API_KEY", "SEGMIND_RATE_LIMIT"):
        monkeypatch.delenv(name)
    account = {"api_key": sandbox.api_key, "rate_limit": "50/60", "max_training": 3, "max_submits_per_day": 20}
    monkeypatch.setenv("SEGMIND_ACCOUNTS", json.dumps({"default": {**account, "max_transfers": 2}}))
    run("doctor", "--api", "--json")
    with connect(queue_url) as client:
        assert Accounts(client).status("default").limits == AccountLimits(50, 60.0, 3, 20, 2, 21600.0)


@pytest.mark.usefixtures("sandbox")
def test_a_clock_that_is_wrong(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shifted = SimpleNamespace(time=lambda: time.time() + 900, monotonic=time.monotonic)
    monkeypatch.setattr("finetune_worker.segmind.call.time", shifted)
    check = asked(run("doctor", "--api", "--json"))["segmind clock"]
    assert check["status"] == "warn"
    assert check["message"].startswith("this machine is 1")
    assert check["message"].endswith(" ahead of Segmind")
    assert "NTP" in check["action"]


def test_a_webhook_that_is_missing(run: Run, sandbox: LiveSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("doctor", "--api", "--json")
    check = asked(result)["webhook default"]
    assert check["status"] == "warn"
    assert "none is registered" in check["message"]
    assert check["action"] == "finetune webhooks register https://YOUR-GATEWAY --account default"
    sandbox.control.reset("report")
    monkeypatch.setenv("FINETUNE_HOOK_SECRET", "")
    check = asked(run("doctor", "--api", "--json"))["webhook default"]
    assert (check["status"], api_calls(sandbox)) == ("ok", 1)
    assert check["message"].startswith("not checked: this needs the gateway's FINETUNE_HOOK_SECRET")


@pytest.mark.usefixtures("sandbox")
def test_a_webhook_that_is_not_ours(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("webhooks", "register", GATEWAY).code == 0
    monkeypatch.setenv("FINETUNE_HOOK_SECRET", "another-secret-" * 4)
    check = asked(run("doctor", "--api", "--json"))["webhook default"]
    assert check["status"] == "warn"
    assert check["message"].startswith(f"Segmind calls {GATEWAY}/hooks/default/..., which was not made")
    assert check["action"] == (
        "Unless another program needs it: finetune webhooks replace https://YOUR-GATEWAY --account default"
    )


def test_a_webhook_that_is_off(run: Run, sandbox: LiveSandbox) -> None:
    assert run("webhooks", "register", GATEWAY).code == 0
    headers = {"x-api-key": sandbox.api_key}
    with httpx.Client(base_url=f"{sandbox.base_url}/webhook", headers=headers, trust_env=False) as api:
        [webhook] = api.get("/get").json()["webhooks"]
        changed = {key: webhook[key] for key in ("webhook_id", "webhook_url")} | {"event": {"types": ["PIXELFLOW"]}}
        assert api.post("/update", json=changed).is_success
        check = asked(run("doctor", "--api", "--json"))["webhook default"]
        assert (check["status"], check["message"]) == ("warn", "ours is for PIXELFLOW and not for FINETUNE")
        assert api.get("/inactive", params={"webhook_id": webhook["webhook_id"]}).is_success
    check = asked(run("doctor", "--api", "--json"))["webhook default"]
    assert check["message"].startswith("ours is inactive")
    assert check["action"] == "finetune webhooks register https://YOUR-GATEWAY --account default"


@pytest.mark.parametrize(("seconds", "length"), [(600, r"1\d min"), (20, r"[12]\d s")])
def test_an_account_that_is_paused_is_not_asked_and_not_waited_for(
    run: Run, sandbox: LiveSandbox, seconds: int, length: str
) -> None:
    sandbox.control.add_fault(op="credits", kind="rate_limited", retry_after=seconds)
    run("doctor", "--api")
    sandbox.control.reset("report")
    found = asked(run("doctor", "--api", "--json"))
    assert list(found) == ["api default"]
    assert re.search(rf"is paused for {length}: .*rate limit", found["api default"]["message"])
    assert "resumes by itself" in found["api default"]["action"]
    assert api_calls(sandbox) == 0


def failed_once(client: redis.Redis) -> Budget:
    """Return the budget of an account that has just had a call without an answer, and so a short pause."""
    Accounts(client).configure("default", AccountLimits(calls=50, window=60))
    budget = Budget(client, call_timeout=60, handover=5, first_sweep=5, backoff_base=1, backoff_max=8)
    first = budget.take("default", "a-job", 0.0)
    assert isinstance(first, Slot)
    budget.pause(first, "Segmind answered 503.", 0.01)
    return budget


def out_of_a_pause(queue_url: str) -> None:
    """Leave the account after a pause, with nobody who tries whether Segmind is well again."""
    with connect(queue_url) as client:
        failed_once(client)
        until(lambda: not Accounts(client).status("default").paused_for, seconds=30)


def test_an_account_that_a_worker_is_just_trying_again_is_not_waited_for(
    run: Run, sandbox: LiveSandbox, queue_url: str
) -> None:
    with connect(queue_url) as client:
        budget = failed_once(client)
        until(lambda: isinstance(budget.take("default", "a-job", 0.0), Slot), seconds=30)
    found = asked(run("doctor", "--api", "--json"))
    assert list(found) == ["api default"]
    assert "is paused while one call tests it: Segmind answered 503." in found["api default"]["message"]
    assert api_calls(sandbox) == 0


def test_a_call_that_failed_lets_another_try_the_paused_account_at_once(
    run: Run, sandbox: LiveSandbox, queue_url: str
) -> None:
    out_of_a_pause(queue_url)
    sandbox.control.add_fault(op="credits", kind="http_error", status=503)
    sandbox.control.add_fault(op="webhook_get", kind="http_error", status=503)
    assert asked(run("doctor", "--api", "--json"))["api default"]["status"] == "fail"
    assert "status 503" in run("webhooks", "list").err
    assert asked(run("doctor", "--api", "--json")).keys() == {*ASKED}


def test_so_does_one_that_timed_out_and_its_slot_stays_taken(
    run: Run, sandbox: LiveSandbox, queue_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_a_pause(queue_url)
    monkeypatch.setenv("SEGMIND_READ_TIMEOUT", "0.5")
    sandbox.control.add_fault(op="credits", kind="slow", seconds=2)
    assert "was silent for 0.5 s" in asked(run("doctor", "--api", "--json"))["api default"]["message"]
    with connect(queue_url) as client:
        [(_, latest)] = client.zrange(keys.slots("default"), -1, -1, withscores=True)
        assert latest / 1000 - client.time()[0] > 100  # the call's own time-out and the window: it may still arrive
    monkeypatch.delenv("SEGMIND_READ_TIMEOUT")
    assert asked(run("doctor", "--api", "--json")).keys() == {*ASKED}


def test_so_does_one_that_a_person_broke_off(
    run: Run, sandbox: LiveSandbox, queue_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_off(_: SegmindClient) -> None:
        raise KeyboardInterrupt

    out_of_a_pause(queue_url)
    with monkeypatch.context() as patched:
        patched.setattr(SegmindClient, "credits", broken_off)
        assert run("doctor", "--api").code == 130
    assert asked(run("doctor", "--api", "--json")).keys() == {*ASKED}


def test_a_command_that_stood_still_after_it_took_its_slot_calls_in_another(
    run: Run, sandbox: LiveSandbox, queue_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that a person stopped with Ctrl-Z: its call would reach Segmind when the slot is somebody else's."""
    take = Budget.take

    def long_ago(budget: Budget, *args: Any) -> Any:
        monkeypatch.setattr(Budget, "take", take)
        slot = take(budget, *args)
        assert isinstance(slot, Slot)
        return replace(slot, asked=slot.asked - 5.1)

    monkeypatch.setattr(Budget, "take", long_ago)
    assert asked(run("doctor", "--api", "--json")).keys() == {*ASKED}
    with connect(queue_url) as client:
        assert (api_calls(sandbox), client.zcard(keys.slots("default"))) == (2, 3)
        [(_, latest)] = client.zrange(keys.slots("default"), -1, -1, withscores=True)
        assert latest / 1000 - client.time()[0] < 62, "the slot that was not used waits as for a call that may arrive"


def test_webhooks_that_cannot_be_read_fail_nothing(run: Run, sandbox: LiveSandbox) -> None:
    sandbox.control.add_fault(op="webhook_get", kind="http_error", status=503)
    found = asked(run("doctor", "--api", "--json"))
    assert {name for name, check in found.items() if check["status"] == "ok"} == {*ASKED} - {"webhook default"}
    assert found["webhook default"]["status"] == "warn"


def test_an_api_that_does_not_answer(run: Run, sandbox: LiveSandbox) -> None:
    sandbox.control.add_fault(op="credits", kind="http_error", status=503)
    result = run("doctor", "--api", "--json")
    assert (result.code, asked(result)["api default"]["status"]) == (ExitCode.FAILED, "fail")
    assert "SEGMIND_BASE_URL" in asked(result)["api default"]["action"]


@pytest.mark.usefixtures("sandbox")
def test_a_budget_without_a_free_call(run: Run, queue_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGMIND_RATE_LIMIT", "1/0.2")
    with connect(queue_url) as client:
        Accounts(client).configure("default", AccountLimits(calls=1, window=0.2))
        budget = Budget(client, call_timeout=60, handover=5, first_sweep=5, backoff_base=1, backoff_max=8)
        assert isinstance(budget.take("default", "a-job", 0.0), Slot)
    result = run("doctor", "--api", "--json")
    found = asked(result)
    assert (result.code, list(found)) == (ExitCode.FAILED, ["api default"])
    assert "had no call free in" in found["api default"]["message"]


@pytest.mark.usefixtures("sandbox")
def test_without_redis_no_call_is_made(run: Run, sandbox: LiveSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_REDIS_URL", "redis://127.0.0.1:1/0")
    found = asked(run("doctor", "--api", "--json"))
    assert "No call is made" in found["api default"]["message"]
    assert api_calls(sandbox) == 0


@pytest.mark.usefixtures("queue_url")
def test_settings_without_a_key(run: Run) -> None:
    assert asked(run("doctor", "--api", "--json"))["api"]["status"] == "fail"
