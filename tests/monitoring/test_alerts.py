"""Every alert fires when it should and is quiet when it should not, by Prometheus' own rule tests."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from finetune_queue.gateway.app import create_app
from finetune_queue.settings import Settings
from monitoring.rules import ALERTS, DASHBOARD, ROOT, alerts

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="no promtool is installed here (on Debian: apt-get install prometheus)",
)

MINUTES = 90
Series = dict[str, str | None]

HEALTHY: Series = {
    "finetune_up": "1",
    'finetune_queue_messages{queue="finetune"}': "0",
    'finetune_workers{version="1"}': "3",
    "finetune_overdue_seconds": "0.1",
    "finetune_dead_letters": "7",
    "finetune_redis_append_only": "1",
    "finetune_redis_log_ok": "1",
    "finetune_redis_noeviction": "1",
    "finetune_redis_primary": "1",
    "finetune_redis_max_bytes": "100",
    "finetune_redis_used_bytes": "50",
    'finetune_jobs{state="training"}': "5",
    'finetune_account_waiting{account="a"}': "9",
    'finetune_api_calls_total{account="a",endpoint="list",result="ok"}': "0+1",
    'finetune_account_unwell{account="a",code=""}': "0",
    'finetune_account_stopped{account="a"}': "0",
    'finetune_sink_lines{condition="down"}': "0",
}
"""A queue at which nothing is to be seen to; a value that is not a number for all time is Prometheus' notation."""

IDLE: Series = {'finetune_api_calls_total{account="a",endpoint="list",result="ok"}': "5"}
TRANSFERS = 'finetune_queue_messages{queue="finetune.transfer"}'
CALLS = 'finetune_queue_messages{queue="finetune"}'
OTHERS = 'finetune_jobs_failed_total{code="dataset_rejected"}'
OURS = 'finetune_jobs_failed_total{code="disk_full"}'
FAILED, ENDED = 'finetune_jobs_entered_total{state="failed"}', 'finetune_jobs_entered_total{state="succeeded"}'
TAKEN = 'finetune_gateway_requests_total{route="/hooks/{account}/{token}",status="202"}'
UP = 'up{job="finetune-flower",instance="b"}'
DOWNLOADS = 'finetune_jobs_entered_total{state="downloading"}'

# For each alert what makes it fire, and what only looks like it, on top of the healthy queue; None takes a
# series away.
CASES: dict[str, tuple[Series, Series]] = {
    "FinetuneUnreadable": (
        {'finetune_queue_messages{queue="finetune"}': None},
        {"finetune_up": None, 'finetune_up{instance="another"}': "0"},
    ),
    "FinetuneNoWorkers": (
        {'finetune_workers{version="1"}': None},
        {'finetune_workers{version="1"}': None, 'finetune_jobs{state="training"}': "0"},
    ),
    "FinetuneQueueUntaken": (
        {TRANSFERS: "4", 'finetune_running_jobs{state="submitting"}': "1"},
        {TRANSFERS: "4", 'finetune_running_jobs{state="uploading"}': "1"},
    ),
    "FinetuneOverdue": ({"finetune_overdue_seconds": "121"}, {"finetune_overdue_seconds": "119"}),
    "FinetuneOldestWaiting": (
        {'finetune_oldest_job_seconds{state="submitting"}': "14401"},
        {'finetune_oldest_job_seconds{state="training"}': "14401"},
    ),
    "FinetuneJobStuck": (
        {'finetune_oldest_job_seconds{state="training"}': "7201"},
        {'finetune_oldest_job_seconds{state="training"}': "3601"},
    ),
    "FinetuneFailures": ({FAILED: "0+1", ENDED: "0+3"}, {FAILED: "0+1", ENDED: "0+12"}),
    "FinetuneErrorBudget": (
        {OURS: "0+1", OTHERS: "0+3", FAILED: "0+4", ENDED: "0+20"},
        {OURS: "0+0.5", OTHERS: "0+3", FAILED: "0+3.5", ENDED: "0+20"},
    ),
    "FinetuneDeadlinePassed": (
        {'finetune_jobs_failed_total{code="deadline_passed"}': "0x50 1"},
        {'finetune_jobs_failed_total{code="deadline_passed"}': "3"},
    ),
    "FinetuneNeedsAttention": (
        {'finetune_jobs{state="needs_attention"}': "1"},
        {'finetune_jobs{state="needs_attention"}': "0"},
    ),
    "FinetunePaidTwice": (
        {"finetune_trainings_paid_twice_total": "0x60 1"},
        {"finetune_trainings_paid_twice_total": "1"},
    ),
    "FinetuneAccountRefused": (
        {'finetune_account_unwell{account="a",code="credits_exhausted"}': "1"},
        {'finetune_account_unwell{account="a",code="server_error"}': "1"},
    ),
    "FinetuneRateLimited": (
        {'finetune_api_calls_total{account="a",endpoint="list",result="rate_limited"}': "0+0.2"},
        {'finetune_api_calls_total{account="a",endpoint="list",result="rate_limited"}': "50"},
    ),
    "FinetuneAccountUnwell": (
        {'finetune_account_unwell{account="a",code="server_error"}': "1"},
        {'finetune_account_unwell{account="a",code="forbidden"}': "1"},
    ),
    "FinetuneBudgetStuck": (IDLE, {**IDLE, 'finetune_account_stopped{account="a"}': "1"}),
    "FinetuneSweepBlind": (
        {'finetune_account_unlooked_seconds{account="a"}': "901"},
        {'finetune_account_unlooked_seconds{account="a"}': "300"},
    ),
    "FinetuneSubmitsStopped": (
        {'finetune_account_stopped{account="a"}': "1"},
        {'finetune_account_stopped{account="a"}': "0x86 1"},
    ),
    "FinetuneSubmitCap": (
        {'finetune_account_submits_today{account="a"}': "20", 'finetune_account_submits_limit{account="a"}': "20"},
        {'finetune_account_submits_today{account="a"}': "19", 'finetune_account_submits_limit{account="a"}': "20"},
    ),
    "FinetuneSinkDown": ({'finetune_sink_lines{condition="down"}': "1"}, {'finetune_sink_lines{condition="up"}': "9"}),
    "FinetuneSinkLag": (
        {"finetune_sink_lag_seconds": "901"},
        {"finetune_sink_lag_seconds": "901", 'finetune_sink_lines{condition="down"}': "1"},
    ),
    "FinetuneDeadLetters": ({"finetune_dead_letters": "7x60 8"}, {"finetune_dead_letters": "8x60 7"}),
    "FinetuneWorkersDie": ({"finetune_takeovers_total": "0+1"}, {"finetune_takeovers_total": "0+0.1"}),
    "FinetuneMessagesLost": ({"finetune_lost_messages_total": "0+1"}, {"finetune_lost_messages_total": "0+0.1"}),
    "FinetuneVersionsMixed": (
        {'finetune_workers{version="2"}': "1"},
        {'finetune_workers{version="2"}': "1x50 _"},
    ),
    "FinetuneUnknownStatus": (
        {"finetune_unknown_provider_statuses_total": "0x60 1"},
        {"finetune_unknown_provider_statuses_total": "1"},
    ),
    "FinetuneRedisFull": (
        {"finetune_redis_used_bytes": "81"},
        {"finetune_redis_used_bytes": "81", "finetune_redis_max_bytes": "0"},
    ),
    "FinetuneRedisEvicts": ({"finetune_redis_noeviction": "0"}, {"finetune_redis_evicted_keys_total": "4"}),
    "FinetuneRedisEmptied": ({"finetune_redis_emptied": "1"}, {"finetune_redis_emptied": "0"}),
    "FinetuneRedisReplica": ({"finetune_redis_primary": "0"}, {"finetune_redis_primary": "1x88 0"}),
    "FinetuneRedisForgets": ({"finetune_redis_log_ok": "0"}, {"finetune_redis_log_ok": "1x86 0"}),
    "FinetuneGatewayErrors": (
        {
            'finetune_gateway_requests_total{route="/v1/jobs",status="503"}': "0+1",
            'finetune_gateway_requests_total{route="/v1/jobs",status="202"}': "0+9",
            'finetune_gateway_requests_total{route="/livez",status="200"}': "0+90",
        },
        {
            'finetune_gateway_requests_total{route="/v1/jobs",status="422"}': "0+1",
            'finetune_gateway_requests_total{route="/v1/jobs",status="202"}': "0+9",
            'finetune_gateway_requests_total{route="/readyz",status="503"}': "0+9",
        },
    ),
    "FinetuneWebhookSilent": (
        {TAKEN: "0+1x30 _", DOWNLOADS: "0+1"},  # of gateways that have been restarted since
        {TAKEN: "0+1", DOWNLOADS: "0+1"},
    ),
    "FinetuneFlowerDown": (
        {'up{job="finetune-flower",instance="a"}': "1x60 _"},  # its pod is gone, and with it what was scraped
        {'up{job="another"}': "0", 'up{job="finetune-flower",instance="a"}': "0", UP: "1"},
    ),
}

LATER = {"FinetuneWebhookSilent": 450}
"""When those are looked at, in minutes, that look back for longer."""


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def written(*tests: dict[str, object], rules: Path | None = ALERTS, every: str = "5m") -> str:
    """Write cases down in the current folder, with the file of rules that they are about; returns the file's name."""
    file = Path(f"{rules.stem if rules else 'no-rules'}-tests.json")
    rule_files = [str(rules)] if rules else []
    file.write_text(json.dumps({"rule_files": rule_files, "evaluation_interval": every, "tests": tests}))
    return str(file)


def rule_test(name: str, changes: Series, firing: str, *, fires: bool) -> dict[str, object]:
    """Return a case in the form of promtool; ``firing`` selects alerts of which some should be firing, or none."""
    minutes = LATER.get(name.partition(" ")[0], MINUTES)
    return {
        "name": name,
        "interval": "1m",
        "input_series": series_of(HEALTHY | changes, minutes),
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{{firing},alertstate="firing"}}) > bool 0 or vector(0)',
                "eval_time": f"{minutes}m",
                "exp_samples": [{"labels": "{}", "value": int(fires)}],
            }
        ],
    }


def series_of(series: Series, minutes: int = MINUTES) -> list[dict[str, str]]:
    """Return what Prometheus has been told, in the form of promtool."""
    return [{"series": key, "values": _for_all_time(text, minutes)} for key, text in series.items() if text is not None]


def _for_all_time(text: str, minutes: int) -> str:
    first, _, last = text.rpartition(" ")
    return f"{first} {last}x{minutes}".strip()


@needs_promtool
def test_promtool_finds_nothing_wrong() -> None:
    assert f"SUCCESS: {len(alerts())} rules found" in promtool("check", "rules", "--lint-fatal", str(ALERTS))


@needs_promtool
def test_each_alert_fires_and_is_quiet(tmp_path: Path) -> None:
    found = alerts()
    assert set(CASES) == set(found)

    files = [written(rule_test("nothing fires at a healthy queue", {}, 'alertname!=""', fires=False))]
    for name, (firing, quiet) in CASES.items():
        assert quiet, name
        rule = tmp_path / f"{name}.json"  # alone: promtool evaluates all that a file has
        rule.write_text(json.dumps({"groups": [{"name": name, "rules": [found[name]]}]}))
        fires = rule_test(f"{name} fires", firing, f'alertname="{name}"', fires=True)
        is_quiet = rule_test(f"{name} is quiet", quiet, f'alertname="{name}"', fires=False)
        files.append(written(fires, is_quiet, rules=rule))
    said = promtool("test", "rules", *files)
    assert said.count("SUCCESS") == len(files)


def test_a_training_that_hangs_is_told_of_before_its_limit_ends_the_job() -> None:
    rule = alerts()["FinetuneJobStuck"]
    (threshold,) = re.findall(r'"training\|deploying"}\) > (\d+)', rule["expr"])
    waits = int(rule["for"].removesuffix("m")) * 60
    assert int(threshold) + waits < Settings().finetune_training_limit


def test_what_is_no_client_s_is_a_route_of_the_gateway() -> None:
    (left_out,) = set(re.findall(r'route!~"([^"]*)"', alerts()["FinetuneGatewayErrors"]["expr"]))
    routes = set(create_app(Settings()).openapi()["paths"])
    assert set(left_out.split("|")) <= routes


def narrowed(file: Path) -> str:
    """Return what the command of docs/metrics.md makes of a file."""
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    (function,) = re.findall(r"^only\(\) \{.*\}$", page, re.MULTILINE)
    command = f"{function}\nonly \"namespace='a'\" {file}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_command_in_the_docs_narrows_every_query_to_one_queue() -> None:
    rules = [rule for group in yaml.safe_load(narrowed(ALERTS))["groups"] for rule in group["rules"]]
    manifest = ROOT / "ops" / "k8s" / "components" / "monitoring" / "alerts.yaml"
    (wrapped,) = yaml.safe_load(narrowed(manifest))["spec"]["groups"]
    assert [rule["expr"] for rule in wrapped["rules"]] == [rule["expr"] for rule in rules]
    panels = json.loads(narrowed(DASHBOARD))["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    for query in [*(rule["expr"] for rule in rules), *queries]:
        found = re.findall(r"\b(?:up|finetune_[a-z_]+)\b(?:\{[^,}]*)?", query)
        assert found
        assert all(each.endswith("{namespace='a'") for each in found), query


@needs_promtool
def test_a_queue_that_nobody_can_read_is_missed_beside_another(tmp_path: Path) -> None:
    one = tmp_path / "one.yaml"
    one.write_text(narrowed(ALERTS))
    other: Series = {key.replace("{", '{namespace="b",'): value for key, value in HEALTHY.items() if "{" in key}
    for rules, fires in ((one, True), (ALERTS, False)):
        test = rule_test("", {}, 'alertname="FinetuneUnreadable"', fires=fires)
        promtool("test", "rules", written({**test, "input_series": series_of(other)}, rules=rules))


@needs_promtool
@pytest.mark.parametrize(
    ("changes", "fires"), [(IDLE, True), ({**IDLE, 'finetune_account_waiting{account="a"}': "0"}, False)]
)
def test_an_account_that_no_job_needs_any_more_is_not_unwell_for_ever(changes: Series, *, fires: bool) -> None:
    """Its last call failed, and nobody makes another; while jobs wait for one, that is no excuse."""
    name = "FinetuneAccountUnwell"
    unwell: Series = {'finetune_account_unwell{account="a",code="server_error"}': "1"}
    test = rule_test(name, {**changes, **unwell}, f'alertname="{name}"', fires=fires)
    promtool("test", "rules", written(test))


USED, LIMIT = 'finetune_account_slots_used{account="a"}', 'finetune_account_calls_limit{account="a"}'
WINDOW = 'finetune_account_window_seconds{account="a"}'


@needs_promtool
@pytest.mark.parametrize(
    ("name", "changes", "fires"),
    [
        # A long window whose calls were all made early on; one with a free slot; slots that never become free again.
        ("FinetuneBudgetStuck", {USED: "600", LIMIT: "600", WINDOW: "3600", **IDLE}, False),
        ("FinetuneBudgetStuck", {USED: "599", LIMIT: "600", WINDOW: "3600", **IDLE}, True),
        ("FinetuneBudgetStuck", {USED: "50", LIMIT: "50", WINDOW: "60", **IDLE}, True),
        ("FinetuneQueueUntaken", {CALLS: "9", **IDLE}, True),
        ("FinetuneQueueUntaken", {CALLS: "0+9", **IDLE}, True),
        ("FinetuneQueueUntaken", {CALLS: "0+9"}, False),  # behind calls, which go first
        ("FinetuneQueueUntaken", {CALLS: "900-9", **IDLE}, False),
        ("FinetuneQueueUntaken", {CALLS: "0", TRANSFERS: "0", **IDLE}, False),
        ("FinetuneQueueUntaken", {TRANSFERS: "4", 'finetune_workers{version="1"}': None}, False),
    ],
)
def test_what_rightly_waits_is_told_from_what_nobody_takes(name: str, changes: Series, *, fires: bool) -> None:
    test = rule_test(name, changes, f'alertname="{name}"', fires=fires)
    promtool("test", "rules", written(test, every="1m"))


@needs_promtool
def test_a_flower_that_is_there_and_does_not_answer_is_down_too() -> None:
    name = "FinetuneFlowerDown"
    test = rule_test(name, {'up{job="finetune-flower",instance="a"}': "0"}, f'alertname="{name}"', fires=True)
    promtool("test", "rules", written(test))


def test_each_alert_says_how_bad_it_is_and_leads_to_its_heading() -> None:
    page = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^#+ (\w+)$", page, re.MULTILINE))
    bases = {rule["annotations"]["runbook_url"].partition("#")[0] for rule in alerts().values()}
    assert len(bases) == 1, "one address is to be replaced by the operator's"
    assert re.fullmatch(r"https://[^/]+/.*\brunbook\b[^#]*", *bases), "a pager can follow only a whole URL"
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, name
        assert rule["annotations"]["summary"], name
        assert rule["annotations"]["runbook_url"].partition("#")[2] == name.lower(), name
        assert name in headings, f"docs/runbook.md has no heading {name}"
    gone = {heading for heading in headings if heading.startswith("Finetune")} - set(alerts())
    assert not gone, f"docs/runbook.md has headings of alerts that are no more: {gone}"


def test_the_command_in_the_docs_puts_another_address_before_each_heading() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    (command,) = re.findall(r'^sed -i "(.*)" ops/monitoring/alerts\.yaml$', page, re.MULTILINE)
    theirs = "https://git.their-company.example/docs/runbook.md"
    script = command.replace("$RUNBOOK", theirs)
    done = subprocess.run(["sed", script, ALERTS], capture_output=True, text=True, timeout=60, check=True)
    rules = [rule for group in yaml.safe_load(done.stdout)["groups"] for rule in group["rules"]]
    assert {rule["alert"] for rule in rules} == set(alerts())
    for rule in rules:
        assert rule["annotations"]["runbook_url"] == f"{theirs}#{rule['alert'].lower()}"
