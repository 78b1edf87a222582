"""What /metrics shows of real workers, and that dashboard, alerts and docs name nothing else."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from finetune_queue.gateway.gauges import GAUGES
from finetune_queue.gateway.metrics import OF_PROCESS
from finetune_queue.local.processes import Child
from finetune_queue.local.stack import LocalStack
from finetune_queue.local.valkey import free_port
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.store import COUNTED
from gateway.serving import run_gateway
from monitoring.rules import DASHBOARD, ROOT, alerts, objectives, selectors
from segmind_sandbox.testing import SandboxControl
from support.samples import sample
from support.until import until

LIMITS_THAT_ARE_NOT_SET = (
    "finetune_account_trainings_limit",
    "finetune_account_submits_limit",
    "finetune_redis_max_bytes",
)

OTHER_NAMES = {"finetune_queue", "finetune_worker", "finetune_id"}


@pytest.fixture(scope="module")
def gateway(stack: LocalStack) -> Iterator[str]:
    with run_gateway(stack.settings) as url:
        yield url


def ready(api: httpx.Client) -> bool:
    """Tell whether Prometheus has started."""
    try:
        return api.get("/status/runtimeinfo").is_success
    except httpx.TransportError:
        return False


def scrape(url: str) -> dict[str, Family]:
    reply = httpx.get(f"{url}/metrics", trust_env=False).raise_for_status()
    return {family.name: family for family in text_string_to_metric_families(reply.text)}


def total(url: str, family: str, **labels: str) -> float:
    samples = scrape(url)[family].samples
    return sum(found.value for found in samples if labels.items() <= found.labels.items())


def wait_for_total(url: str, family: str, least: float, **labels: str) -> None:
    """Wait for what a worker counted; it is here about a second later."""
    until(lambda: total(url, family, **labels) >= least, seconds=30)


@pytest.fixture
def worked(queue: FineTuneQueue, control: SandboxControl, images: Path, gateway: str) -> str:
    """The gateway's URL, after one job went well and one did not, and a 429 came on the way."""
    control.add_fault(op="submit", kind="rate_limited")
    good = queue.submit(sample(dataset=str(images)))
    bad = queue.submit(sample(dataset="file:///nowhere/faces.zip"))
    assert (good.wait(timeout=60).state, bad.wait(timeout=60).state) == ("succeeded", "failed")
    wait_for_total(gateway, "finetune_job_seconds", 1, outcome="succeeded")
    return gateway


def test_one_truth_of_two_workers_at_every_gateway(worked: str, stack: LocalStack) -> None:
    expected: list[tuple[str, dict[str, str], float]] = [
        ("finetune_workers", {}, 2),
        ("finetune_jobs_failed", {}, 1),
        ("finetune_api_calls", {"endpoint": "submit", "result": "rate_limited"}, 1),
        ("finetune_api_calls", {"endpoint": "submit", "result": "ok"}, 1),
        ("finetune_transferred_bytes", {"direction": "download"}, 262144),
        ("finetune_redis_append_only", {}, 1),
    ]
    with run_gateway(stack.settings) as another:
        for family, labels, least in expected:
            for url in (worked, another):
                wait_for_total(url, family, least, **labels)


def test_the_docs_list_what_is_exported_and_nothing_else_is_named_anywhere(worked: str) -> None:
    families = scrape(worked).values()
    known = {metric.name: metric for metric in (*GAUGES, *COUNTED, *OF_PROCESS)}
    exported = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert {name for name in exported if not name.endswith("_created")} == set(known)
    labels = {found.name: set(found.labels) for family in families for found in family.samples}
    labels |= {name: set(metric.labels) for name, metric in known.items()}  # also those without a sample so far

    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    expressions += [rule["expr"] for rule in alerts().values()] + objectives()
    for expression in expressions:
        for name, used in selectors(expression):
            if name != "up":  # Prometheus' own
                assert name in labels, f"there is no metric {name}: {expression}"
                assert used <= labels[name], expression

    for page in ("metrics", "runbook", "slo"):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        named = set(re.findall(r"\bfinetune_[a-z_]*[a-z](?![a-z_])", text)) - OTHER_NAMES
        assert named <= set(labels), f"docs/{page}.md"
        for start in re.findall(r"`metric ([a-z_]+)`", text):
            assert any(name.startswith(f"finetune_{start}") for name in labels), f"docs/{page}.md: metric {start}"
        if page == "metrics":
            assert set(re.findall(r"^\| `(finetune_\w+)`", text, re.MULTILINE)) == set(known)


@pytest.mark.skipif(
    shutil.which("prometheus") is None,
    reason="no Prometheus is installed here (on Debian: apt-get install prometheus)",
)
def test_prometheus_reads_it_and_finds_data_for_every_panel(worked: str, tmp_path: Path) -> None:
    config = tmp_path / "prometheus.yaml"
    target = worked.removeprefix("http://")
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(ROOT / "ops/monitoring/alerts.yaml")],
                "scrape_configs": [{"job_name": "finetune-gateway", "static_configs": [{"targets": [target]}]}],
            }
        )
    )
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (
        Child("prometheus", command, env={"PATH": "/usr/local/bin:/usr/bin"}, cwd=tmp_path, log=tmp_path / "log"),
        httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False) as api,
    ):

        def query(expression: str) -> list[object]:
            expression = expression.replace("$__rate_interval", "1m").replace("$account", ".*")
            found: list[object] = (
                api.get("/query", params={"query": expression}).raise_for_status().json()["data"]["result"]
            )
            return found

        until(lambda: ready(api), seconds=20)
        until(lambda: bool(query("rate(finetune_jobs_entered_total[1m])")), seconds=20)
        dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
        for panel in dashboard["panels"]:
            for wanted in panel.get("targets", []):
                unset = any(name in wanted["expr"] for name in LIMITS_THAT_ARE_NOT_SET)
                assert query(wanted["expr"]) or unset, f"{panel['title']}: {wanted['expr']}"

        def health() -> dict[str, str]:
            rules = api.get("/rules").raise_for_status().json()["data"]["groups"][0]["rules"]
            return {rule["name"]: rule["health"] for rule in rules}

        until(lambda: "unknown" not in health().values(), seconds=20)
        assert health() == dict.fromkeys(alerts(), "ok")
