"""Write the Grafana dashboard, ops/monitoring/dashboard.json, from the table below.

    python -m ops.monitoring.dashboard [--check]

With `--check` it writes nothing and says whether the file differs. Import the file in Grafana, or have it provisioned.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.generated import main

FILE = Path(__file__).resolve().with_name("dashboard.json")
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24  # of Grafana's grid
ACCOUNT = 'account=~"$account"'


@dataclass(frozen=True)
class Panel:
    """One panel: its queries with their legends, the unit, and the value from which it is red."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    red: float | None = None
    about: str = ""


def graph(title: str, *queries: tuple[str, str], unit: str = "short", about: str = "") -> Panel:
    """Return a graph over time."""
    return Panel(title, queries, unit, about=about)


def stat(title: str, query: str, *, unit: str = "short", red: float | None = None, about: str = "") -> Panel:
    """Return a single number."""
    return Panel(title, ((query, ""),), unit, "stat", red, about)


def per_minute(metric: str, by: str) -> str:
    """Return how often something was counted in a minute. All gateways export the same counters, those in Redis, so
    their max is the number and their sum would be too many."""
    return f"60 * max by ({by}) (rate({metric}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str, also: str = "") -> str:
    """Return a quantile of a histogram, whose other labels in ``also`` are added up."""
    labels = ", ".join(filter(None, ["le", by, also]))
    rates = f"max by ({labels}) (rate({metric}_bucket[$__rate_interval]))"
    return f"histogram_quantile({share}, sum by (le, {by}) ({rates}))"


def account(metric: str) -> str:
    """Return a gauge of the chosen accounts."""
    return f"max by (account) (finetune_account_{metric}{{{ACCOUNT}}})"


CALLS = f"finetune_api_calls_total{{{ACCOUNT}}}"
ANSWERS = "finetune_gateway_request_seconds_bucket"
WAITING = "accepted|uploading|submitting"

ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        stat("Waiting to be submitted", f'sum(max by (state) (finetune_jobs{{state=~"{WAITING}"}}))'),
        stat("In training", 'max(finetune_jobs{state="training"})'),
        stat("Fetching weights", 'max(finetune_jobs{state="downloading"})'),
        stat("Oldest waiting", f'max(finetune_oldest_job_seconds{{state=~"{WAITING}"}})', unit="s", red=14400),
        stat("Need a person", 'max(finetune_jobs{state="needs_attention"})', red=1),
        stat("Dead letters", "max(finetune_dead_letters)", red=1),
        stat("Overdue", "max(finetune_overdue_seconds)", unit="s", red=120, about="Next to 0 while a worker lives."),
        stat("Workers", "sum(max by (version) (finetune_workers)) or vector(0)"),
    ),
    "Jobs": (
        graph(
            "Jobs in each state", ('max by (state) (finetune_jobs{state!~"succeeded|failed|cancelled"})', "{{state}}")
        ),
        graph(
            "New and ended, a minute",
            (
                per_minute('finetune_jobs_entered_total{state=~"accepted|succeeded|failed|cancelled"}', "state"),
                "{{state}}",
            ),
        ),
        graph(
            "Failed within an hour, by code", ("max by (code) (increase(finetune_jobs_failed_total[1h]))", "{{code}}")
        ),
        graph(
            "From accepted to ended",
            (quantile(0.5, "finetune_job_seconds", "outcome"), "{{outcome}}, half"),
            (quantile(0.95, "finetune_job_seconds", "outcome"), "{{outcome}}, 95 %"),
            unit="s",
        ),
    ),
    "Accounts": (
        graph(
            "Call slots in use",
            (account("slots_used"), "{{account}}"),
            (account("calls_limit"), "{{account}}, limit"),
        ),
        graph("Jobs that wait for a call", (account("waiting"), "{{account}}")),
        graph(
            "Trainings at Segmind",
            (account("trainings"), "{{account}}"),
            (account("trainings_limit"), "{{account}}, limit"),
        ),
        graph(
            "Paid submits today",
            (account("submits_today"), "{{account}}"),
            (account("submits_limit"), "{{account}}, limit"),
        ),
        graph(
            "Unwell, and why",
            (f"max by (account, code) (finetune_account_unwell{{{ACCOUNT}}})", "{{account}} {{code}}"),
            about="1 while no call of the account goes well. A short pause leads to it and is no trouble.",
        ),
        graph("Still paused", (account("paused_seconds"), "{{account}}"), unit="s"),
        graph("Since a sweep saw the trainings", (account("unlooked_seconds"), "{{account}}"), unit="s"),
        graph("Kill switch", (account("stopped"), "{{account}}")),
    ),
    "Segmind's API": (
        graph(
            "Calls a minute",
            (
                f"sum by (endpoint) ({per_minute(CALLS, 'account, endpoint, result')})",
                "{{endpoint}}",
            ),
        ),
        graph(
            "Calls without a good answer, a minute",
            (
                per_minute(f'finetune_api_calls_total{{{ACCOUNT},result!="ok"}}', "account, endpoint, result"),
                "{{account}} {{endpoint}} {{result}}",
            ),
        ),
        graph(
            "Time of a call, 95 %", (quantile(0.95, "finetune_api_call_seconds", "endpoint"), "{{endpoint}}"), unit="s"
        ),
        graph(
            "Statuses that nobody documented",
            ("max(increase(finetune_unknown_provider_statuses_total[$__rate_interval]))", "changes"),
        ),
    ),
    "Stages": (
        graph(
            "Time of a stage, 95 %",
            (quantile(0.95, "finetune_stage_seconds", "stage", "outcome"), "{{stage}}"),
            unit="s",
        ),
        graph(
            "What came of them, a minute",
            (per_minute("finetune_stage_seconds_count", "stage, outcome"), "{{stage}} {{outcome}}"),
        ),
        graph("Held by a worker now", ("max by (state) (finetune_running_jobs)", "{{state}}")),
        graph(
            "Transferred",
            ("max by (direction) (rate(finetune_transferred_bytes_total[$__rate_interval]))", "{{direction}}"),
            unit="Bps",
            about="Counted when a transfer has ended well.",
        ),
        graph("Messages in the queues", ("max by (queue) (finetune_queue_messages)", "{{queue}}")),
        graph(
            "Taken over, sent again, paid twice",
            ("max(increase(finetune_takeovers_total[$__rate_interval]))", "jobs taken over from a worker"),
            ("max(increase(finetune_lost_messages_total[$__rate_interval]))", "messages sent again"),
            ("max(increase(finetune_trainings_paid_twice_total[$__rate_interval]))", "jobs paid for more than once"),
        ),
    ),
    "Events": (
        graph("Attempts to deliver, a minute", (per_minute("finetune_deliveries_total", "outcome"), "{{outcome}}")),
        graph("Places of sinks", ("max by (condition) (finetune_sink_lines)", "{{condition}}")),
        graph("Jobs whose events wait", ("max(finetune_sink_waiting)", "jobs")),
        graph("How late they are", ("max(finetune_sink_lag_seconds)", "the latest"), unit="s"),
    ),
    "Workers, Redis and gateways": (
        graph("Workers by version", ("max by (version) (finetune_workers)", "{{version}}")),
        graph(
            "Memory of Redis",
            ("max(finetune_redis_used_bytes)", "used"),
            ("max(finetune_redis_max_bytes) > 0", "limit"),
            unit="bytes",
        ),
        graph(
            "Redis keeps what it has",
            ("min(finetune_redis_primary)", "is a primary"),
            ("min(finetune_redis_append_only)", "keeps a log"),
            ("min(finetune_redis_log_ok)", "log and snapshots can be written"),
            ("min(finetune_redis_noeviction)", "never evicts"),
            ("max(finetune_redis_emptied)", "came back without its data within a day"),
            ("max(increase(finetune_redis_evicted_keys_total[1h]))", "keys dropped within an hour"),
        ),
        graph(
            "Requests to the gateways, a minute",
            ("60 * sum by (status) (rate(finetune_gateway_requests_total[$__rate_interval]))", "{{status}}"),
        ),
        graph(
            "Time to answer, 95 %",
            (
                f"histogram_quantile(0.95, sum by (le, route) (rate({ANSWERS}[$__rate_interval])))",
                "{{route}}",
            ),
            unit="s",
        ),
        graph("Gateways that read the queue", ("sum(finetune_up)", "gateways")),
    ),
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "gridPos": _place(0, top, WIDTH, 1), "panels": []})
        top += 1
        # Eight numbers, four graphs or three beside each other, as no line should end in a gap.
        in_line = 8 if row[0].kind == "stat" else (4 if len(row) in {4, 8} else 3)
        width, height = WIDTH // in_line, 4 if row[0].kind == "stat" else 8
        for index, panel in enumerate(row):
            line, column = divmod(index, in_line)
            panels.append(_panel(panel, _place(column * width, top + line * height, width, height)))
        top += height * -(-len(row) // in_line)
    for number, each in enumerate(panels, start=1):
        each["id"] = number
    return {
        "uid": "finetune-queue",
        "title": "finetune-queue",
        "description": "Where the jobs are and what holds them. See docs/metrics.md and docs/runbook.md.",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "tags": ["finetune"],
        "templating": {"list": [_datasource(), _accounts()]},
        "panels": panels,
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.red is not None:
        steps.append({"color": "red", "value": panel.red})
    targets = [
        {"refId": chr(ord("A") + index), "datasource": DATASOURCE, "expr": query, "legendFormat": legend}
        for index, (query, legend) in enumerate(panel.queries)
    ]
    found: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "targets": targets,
    }
    if panel.about:
        found["description"] = panel.about
    if panel.kind == "stat":
        found["options"] = {"colorMode": "value" if panel.red is None else "background", "graphMode": "area"}
    return found


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _accounts() -> dict[str, Any]:
    query = "label_values(finetune_account_calls_limit, account)"
    return {
        "name": "account",
        "label": "Account",
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": "accounts"},
        "refresh": 2,  # the list of accounts is read anew at each change of the time range
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


if __name__ == "__main__":
    sys.exit(main({FILE: json.dumps(dashboard(), indent=2) + "\n"}))
