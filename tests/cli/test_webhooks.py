"""``finetune webhooks`` against the sandbox's webhook API, and a gateway that the hooks reach."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis
from pydantic import SecretStr

from finetune_queue.settings import load_settings
from finetune_queue.store import Budget, RedisError, keys
from finetune_worker.segmind.webhooks import WebhookClient
from gateway.serving import HOOK_SECRET, run_gateway
from sandbox.calls import Api
from segmind_sandbox.testing import LiveSandbox
from support.cli import Run
from support.until import until


@pytest.fixture
def gateway(sandbox: LiveSandbox) -> Iterator[str]:
    with run_gateway(load_settings()) as url:
        yield url


def add(sandbox: LiveSandbox, url: str, *types: str) -> None:
    """Register a webhook as another program does."""
    body = {"webhook_url": url, "event": {"types": types}}
    headers = {"x-api-key": sandbox.api_key}
    httpx.post(f"{sandbox.base_url}/webhook/add", json=body, headers=headers, trust_env=False).raise_for_status()


def listed(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run("webhooks", "list", "--json").json
    return found


def test_a_registered_webhook_reaches_the_gateway(run: Run, gateway: str, client: redis.Redis) -> None:
    assert run("webhooks", "list").out.strip() == "The account 'default' has no webhook."
    result = run("webhooks", "register", gateway)
    assert result.code == 0, result.err
    assert f"{gateway}/hooks/default/..." in result.out
    [webhook] = listed(run)
    assert (webhook["ours"], webhook["status"], webhook["event_types"]) == (True, "active", ["FINETUNE"])

    client.zadd(keys.tracked("default"), {"a-job": 1})
    client.hset(keys.account("default"), mapping={"sweep_at": 9e12, "sweep_due": 9e12, "sweep_cost_ms": 9e12})
    result = run("webhooks", "test")
    assert result.code == 0, result.err + result.out
    assert "202, accepted as a hint" in result.out
    until(lambda: float(str(client.hget(keys.account("default"), "sweep_at"))) < 9e12, seconds=30)


def test_the_sample_and_all_three_changes_of_a_training_reach_the_gateway(
    run: Run, gateway: str, sandbox: LiveSandbox
) -> None:
    sandbox.control.change_settings(rate_limit="1000/60")
    run("webhooks", "register", gateway)
    [webhook] = listed(run)
    sandbox.control.test_webhook(webhook["webhook_id"])
    api = Api(sandbox)
    api.trained()

    def answered() -> list[tuple[str, int]]:
        asked = {"webhook_id": webhook["webhook_id"]}
        log = api.call("GET", "/webhook/dispatch-logs", params=asked).json()["logs"]
        return sorted((each["payload"]["status"], each["response_code"]) for each in log)

    words = ["AVAILABLE", "AVAILABLE", "INFERENCE_QUEUED", "TRAINING_COMPLETED"]
    until(lambda: answered() == [(word, 202) for word in words], seconds=30)
    api.close()


def test_registering_again_changes_nothing_and_another_needs_replace(run: Run, gateway: str) -> None:
    for _ in range(2):
        assert run("webhooks", "register", gateway).code == 0
    assert len(listed(run)) == 1
    other = "http://127.0.0.1:9"
    result = run("webhooks", "register", other, "--json")
    assert (result.code, result.error["code"]) == (7, "webhook_exists")
    assert run("webhooks", "replace", other).code == 0
    assert [webhook["url"] for webhook in listed(run)] == [f"{other}/hooks/default/..."]


def test_who_had_the_webhook_is_named_before_and_after_it_is_replaced(
    run: Run, gateway: str, sandbox: LiveSandbox
) -> None:
    theirs = "http://127.0.0.1:9/theirs?for=them"
    with WebhookClient(load_settings().webhook_api, SecretStr(sandbox.api_key)) as hooks:
        hooks.add(theirs)
    refused = run("webhooks", "register", gateway)
    assert (refused.code, theirs in refused.err) == (7, True)
    assert "hears nothing any more" in refused.err
    assert [webhook["url"] for webhook in listed(run)] == [theirs]

    done = run("webhooks", "replace", gateway)
    assert done.code == 0, done.err
    assert f"no longer calls {theirs}" in done.err
    assert "FINETUNE_SINKS" in done.err

    other = "http://127.0.0.1:9"  # of the same gateway: nobody else is cut off
    again = run("webhooks", "replace", other)
    assert (again.code, again.err) == (0, "")
    assert run("webhooks", "replace", gateway, "--json").json["replaced"] == f"{other}/hooks/default/..."
    assert run("webhooks", "replace", gateway, "--json").json["replaced"] is None


def test_other_events_of_a_webhook_are_named_before_and_after_they_end(
    run: Run, gateway: str, sandbox: LiveSandbox
) -> None:
    for url in ("http://127.0.0.1:9/theirs", run("webhooks", "url", "http://127.0.0.1:9").out.strip()):
        sandbox.control.reset()
        add(sandbox, url, "PIXELFLOW", "FINETUNE")
        refused = run("webhooks", "register", gateway)
        assert (refused.code, "nobody gets its other events any more (PIXELFLOW)" in refused.err) == (7, True)
        done = run("webhooks", "replace", gateway)
        assert (done.code, "nobody gets its other events any more (PIXELFLOW)" in done.err) == (0, True)
        assert "register another webhook in Segmind's console" in done.err
        assert "hears nothing any more" in done.err or "theirs" not in url
        assert listed(run)[0]["event_types"] == ["FINETUNE"]


def test_a_webhook_is_removed_once_it_is_confirmed(run: Run, gateway: str) -> None:
    assert run("webhooks", "register", gateway).code == 0
    shown = f"{gateway}/hooks/default/..."
    asked = run("webhooks", "remove", "--json")
    assert (asked.code, asked.error["code"], asked.error["url"]) == (2, "not_confirmed", shown)
    assert "webhooks remove --yes" in asked.error["message"]
    assert listed(run)[0]["status"] == "active"

    done = run("webhooks", "remove", "--yes")
    assert (done.code, f"no longer calls {shown}. Jobs go on" in done.out) == (0, True), done.err
    [webhook] = listed(run)
    assert webhook["status"] == "inactive"
    assert run("webhooks", "remove", "--yes", "--json").error["code"] == "no_webhook"
    assert "register" not in run("webhooks", "remove", "--yes").err  # there is nothing left to do
    assert "webhooks register --help" in run("webhooks", "test").err

    assert run("webhooks", "register", gateway).code == 0
    removed = run("webhooks", "remove", "--yes", "--json").json
    assert (removed["removed"], removed["webhook_id"] != webhook["webhook_id"]) == (shown, True)


def test_who_listens_at_a_webhook_is_named_before_and_after_it_is_removed(run: Run, sandbox: LiveSandbox) -> None:
    theirs = "http://127.0.0.1:9/theirs"
    add(sandbox, theirs, "FINETUNE", "PIXELFLOW")
    for said in (run("webhooks", "remove").err, run("webhooks", "remove", "--yes").out):
        assert f"calls {theirs}" in said
        assert "hears nothing any more, and nobody gets its other events any more (PIXELFLOW)" in said


def test_a_command_to_type_next_is_for_the_same_account(
    run: Run, sandbox: LiveSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = {"team-a": {"api_key": sandbox.api_key, "rate_limit": "50/60"}}
    for name in ("SEGMIND_API_KEY", "SEGMIND_RATE_LIMIT"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("SEGMIND_ACCOUNTS", json.dumps(accounts))
    mine = ("--account", "team-a")
    assert "webhooks test --account team-a" in run("webhooks", "register", "http://127.0.0.1:9", *mine).out
    other = "http://127.0.0.1:8"
    assert f"webhooks replace {other} --account team-a" in run("webhooks", "register", other, *mine).err
    assert "webhooks remove --yes --account team-a" in run("webhooks", "remove", *mine).err


def test_a_webhook_that_does_not_answer_fails_the_test(run: Run, sandbox: LiveSandbox) -> None:
    assert run("webhooks", "register", "http://127.0.0.1:9").code == 0
    sandbox.control.test_webhook(listed(run)[0]["webhook_id"])
    until(lambda: bool(run("webhooks", "test", "--json").json["deliveries"]), seconds=30)
    result = run("webhooks", "test")
    assert result.code == 1
    assert "answered from here: nothing" in result.out
    assert "Segmind, 20" in result.out
    assert "failed" in result.out


def test_a_gateway_with_another_secret_fails_the_test(run: Run, gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOOK_SECRET", "another-secret-" * 4)
    assert run("webhooks", "register", gateway).code == 0
    result = run("webhooks", "test")
    assert (result.code, "404: another gateway" in result.out) == (1, True)


def test_somebody_else_s_webhook_is_left_alone_by_the_test(
    run: Run, gateway: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("webhooks", "register", gateway).code == 0
    monkeypatch.setenv("FINETUNE_HOOK_SECRET", "another-secret-" * 4)
    result = run("webhooks", "test", "--json")
    assert (result.code, result.error["code"]) == (7, "not_ours")
    assert listed(run)[0]["ours"] is False


def test_no_token_is_printed(run: Run, gateway: str) -> None:
    said = [run("webhooks", *each) for each in (("register", gateway), ("list",), ("list", "--json"), ("test",))]
    with_token = run("webhooks", "register", gateway, "--json")
    for result in [*said, with_token]:
        assert "/..." in result.out
        assert not any(len(word) > 42 for word in result.out.replace("/", " ").split())


def test_the_url_to_paste_in_the_console_reaches_the_gateway_and_needs_no_call(
    run: Run, gateway: str, sandbox: LiveSandbox, client: redis.Redis
) -> None:
    result = run("webhooks", "url", f"{gateway}/")
    assert result.code == 0, result.err
    url = result.out.strip()
    assert "secret" in result.err
    assert url not in result.err
    assert run("webhooks", "url", gateway, "--json").json == {"account": "default", "url": url}
    assert client.zcard(keys.slots("default")) == 0

    with WebhookClient(load_settings().webhook_api, SecretStr(sandbox.api_key)) as hooks:
        hooks.add(url)
    assert listed(run)[0]["ours"] is True
    assert run("webhooks", "test").code == 0


def test_the_url_is_printed_where_there_is_no_key_nor_redis(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOOK_SECRET", HOOK_SECRET)
    monkeypatch.setenv("FINETUNE_REDIS_URL", "redis://127.0.0.1:1/0")
    result = run("webhooks", "url", "https://gateway.example.com", "--account", "team-a")
    assert (result.code, result.out.rpartition("/")[0]) == (0, "https://gateway.example.com/hooks/team-a")
    refused = run("webhooks", "url", "https://gateway.example.com", "--account", "a/b")
    assert (refused.code, refused.out, "beginning with a letter or digit" in refused.err) == (2, "", True)


@pytest.mark.usefixtures("sandbox")
def test_no_secret_to_sign_deliveries_with_is_needed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_SINKS", "https://orders.example.com/finetuned")
    result = run("webhooks", "list")
    assert result.code == 0, result.err


def test_each_call_takes_a_slot_of_the_account(run: Run, sandbox: LiveSandbox, client: redis.Redis) -> None:
    run("webhooks", "list")
    assert client.zcard(keys.slots("default")) == 1
    assert client.hget(keys.account("default"), "limit") == "50"


def test_its_success_at_another_host_shows_nothing_of_the_api(
    run: Run, sandbox: LiveSandbox, client: redis.Redis
) -> None:
    run("webhooks", "list")
    client.hset(keys.account("default"), mapping={"probing": "1", "probe_until": "0", "pause_reason": "down"})
    assert run("webhooks", "list").code == 0
    assert client.hget(keys.account("default"), "probing") == "1"
    assert run("doctor", "--api").code in {0, 1}
    assert client.hget(keys.account("default"), "probing") is None  # by a call of the API itself


def test_a_429_pauses_the_account(run: Run, sandbox: LiveSandbox, client: redis.Redis) -> None:
    sandbox.control.change_settings(rate_limit="1/60")
    run("webhooks", "list")
    result = run("webhooks", "list", "--json")
    assert (result.code, result.error["code"]) == (4, "rate_limited")
    assert float(str(client.hget(keys.account("default"), "paused_until"))) > 0
    sandbox.control.change_settings(rate_limit="50/60")


def test_a_call_that_was_made_counts_though_redis_went_away_meanwhile(
    run: Run, gateway: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise RedisError("connection lost")

    with monkeypatch.context() as patched:
        patched.setattr(Budget, "end_without_news", gone)
        result = run("webhooks", "register", gateway)
    assert (result.code, "its slot ends by itself" in result.err) == (0, True), result.err
    assert len(listed(run)) == 1


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "said"),
    [
        (("register", "ftp://x"), {}, 2, "should be the gateway's https:// address"),
        (("register", "http://gateway.example.com"), {}, 2, "should be the gateway's https:// address"),
        (("register", "https://gateway.example.com/?a=b"), {}, 2, "just an address"),
        (("register", "https://[x"), {}, 2, "just an address"),
        (("register", "https://x:y"), {}, 2, "just an address"),
        (("register", "https://x:99999"), {}, 2, "just an address"),
        (("register", "https://x"), {"FINETUNE_HOOK_SECRET": ""}, 6, "FINETUNE_HOOK_SECRET: missing"),
        (("url", "http://gateway.example.com"), {}, 2, "should be the gateway's https:// address"),
        (("url", "https://x"), {"FINETUNE_HOOK_SECRET": ""}, 6, "FINETUNE_HOOK_SECRET: missing"),
        (("url", "https://x", "--account", "other"), {}, 2, "no such account (known: default)"),
        (("list",), {"SEGMIND_API_KEY": ""}, 6, "SEGMIND_API_KEY: missing, and this command needs it"),
        (("test",), {}, 3, "has no webhook"),
        (("remove", "--yes"), {}, 3, "has no webhook"),
        (("list", "--account", "other"), {}, 2, "no such account"),
        (("list",), {"SEGMIND_API_KEY": "SG_wrong_key"}, 1, "Segmind does not know the API key"),
        (("list",), {"FINETUNE_REDIS_URL": "redis://127.0.0.1:1/0"}, 4, "No call is made"),
    ],
)
def test_what_cannot_be_is_said(
    run: Run,
    sandbox: LiveSandbox,
    monkeypatch: pytest.MonkeyPatch,
    *,
    arguments: tuple[str, ...],
    variables: dict[str, str],
    code: int,
    said: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = run("webhooks", *arguments)
    assert (result.code, said in result.err) == (code, True), result.err
