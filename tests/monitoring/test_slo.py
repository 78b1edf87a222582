"""The queries of docs/slo.md say what they should of a queue that keeps its objectives three quarters of the time."""

import re

from monitoring.rules import ROOT, alerts, objectives
from monitoring.test_alerts import MINUTES, Series, needs_promtool, promtool, series_of, written

GOOD_THEN_BAD = "x74"  # of the last hour of 90 minutes the first three quarters
FAILED, REQUESTS = "finetune_jobs_failed_total", "finetune_gateway_requests_total"
ENTERED = "finetune_jobs_entered_total"
CALLS = 'finetune_api_calls_total{account="a",endpoint="list"'
OTHER = 'finetune_api_calls_total{account="b",endpoint="list"'

# For each query, in the order of the page: what Prometheus has, and what comes out.
CASES: list[tuple[Series, float]] = [
    (
        {"finetune_redis_append_only": "1", "finetune_redis_log_ok": "1", "finetune_redis_noeviction": "0"},
        0.0,
    ),
    # It is down for half of the last quarter, and full for the other half.
    (
        {
            "finetune_up": "1x74 0x6 1",
            "finetune_redis_used_bytes": "98x81 99",
            "finetune_redis_max_bytes": "100",
        },
        0.75,
    ),
    (
        {
            f'{REQUESTS}{{method="POST",route="/v1/jobs",status="503"}}': "0+1",
            f'{REQUESTS}{{method="POST",route="/v1/jobs",status="202"}}': "0+3",
            f'{REQUESTS}{{method="GET",route="/v1/jobs/{{job_id}}",status="503"}}': "0+9",
        },
        0.75,
    ),
    ({"finetune_overdue_seconds": f"0.1{GOOD_THEN_BAD} 61"}, 0.75),
    ({'finetune_account_unlooked_seconds{account="a"}': f"299{GOOD_THEN_BAD} 301"}, 0.75),
    (
        {
            f'{FAILED}{{code="disk_full"}}': "0+1",
            f'{FAILED}{{code="dataset_rejected"}}': "0+1",
            f'{ENTERED}{{state="failed"}}': "0+2",
            f'{ENTERED}{{state="succeeded"}}': "0+2",
        },
        0.75,
    ),
    ({f'{ENTERED}{{state="needs_attention"}}': "0+1", f'{ENTERED}{{state="submitting"}}': "0+4"}, 0.75),
    # Of two accounts one meets no 429.
    (
        {f'{CALLS},result="rate_limited"}}': "0+1", f'{CALLS},result="ok"}}': "0+3", f'{OTHER},result="ok"}}': "0+3"},
        1.75,
    ),
    # Events are late for half an hour; for the first half of it a sink was down.
    ({"finetune_sink_lag_seconds": "59x59 61", 'finetune_sink_lines{condition="down"}': "0x59 1x14 0"}, 0.75),
    ({'finetune_account_unwell{account="a",code="server_error"}': f"1{GOOD_THEN_BAD} 0"}, 0.75),
]


def rule_test(query: str, series: Series, value: float) -> dict[str, object]:
    """Return a case in the form of promtool, of the last hour of 90 minutes."""
    return {
        "name": query,
        "interval": "1m",
        "input_series": series_of(series),
        "promql_expr_test": [
            {
                "expr": f"round(sum({query.replace('30d', '1h')}), 0.05)",
                "eval_time": f"{MINUTES}m",
                "exp_samples": [{"labels": "{}", "value": value}],
            }
        ],
    }


@needs_promtool
def test_each_query_tells_the_good_from_the_bad() -> None:
    cases = [rule_test(query, *case) for query, case in zip(objectives(), CASES, strict=True)]
    promtool("test", "rules", written(*cases, rules=None))


# A gateway ended when three quarters of the hour were over, and another came, which shows what was counted before too.
# Whatever went wrong did so in its time. For each query: a word of it, what Prometheus has, and what comes out.
BEFORE, AFTER = 'instance="before",', 'instance="after",'
GONE, CAME = "x74 _", "_x74 "
ROLLED: list[tuple[str, Series, float]] = [
    (
        "needs_attention",
        {
            f'{ENTERED}{{{BEFORE}state="needs_attention"}}': f"0{GONE}",
            f'{ENTERED}{{{AFTER}state="needs_attention"}}': f"{CAME}0+4",
            f'{ENTERED}{{{BEFORE}state="submitting"}}': f"0+4{GONE}",
            f'{ENTERED}{{{AFTER}state="submitting"}}': f"{CAME}300+4",
        },
        0.75,
    ),
    (
        FAILED,
        {
            f'{FAILED}{{{AFTER}code="disk_full"}}': f"{CAME}0+4",
            f'{ENTERED}{{{BEFORE}state="succeeded"}}': f"0+4{GONE}",
            f'{ENTERED}{{{AFTER}state="succeeded"}}': f"{CAME}300",
            f'{ENTERED}{{{AFTER}state="failed"}}': f"{CAME}0+4",
        },
        0.75,
    ),
    (
        "finetune_api_calls_total",
        {
            f'{CALLS},{BEFORE}result="ok"}}': f"0+4{GONE}",
            f'{CALLS},{AFTER}result="ok"}}': f"{CAME}300",
            f'{CALLS},{AFTER}result="rate_limited"}}': f"{CAME}0+4",
        },
        0.75,
    ),
]


@needs_promtool
def test_a_query_counts_what_gateways_showed_one_after_the_other() -> None:
    queries = {word: query for word, *_ in ROLLED for query in objectives() if word in query}
    cases = [rule_test(queries[word], series, value) for word, series, value in ROLLED]
    promtool("test", "rules", written(*cases, rules=None))


def test_each_objective_has_alerts_that_exist() -> None:
    page = (ROOT / "docs" / "slo.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bFinetune[A-Z]\w+", page))
    assert named <= set(alerts())
    numbered = re.findall(r"^\| (\d) \|", page, re.MULTILINE)
    assert sorted(numbered) == sorted([*"12345678"] * 2)  # in the table of objectives and in that of alerts


def test_what_is_not_counted_is_the_same_everywhere_and_exists() -> None:
    expressions = "\n".join([alerts()["FinetuneErrorBudget"]["expr"], *objectives()])
    (left_out,) = set(re.findall(r'code!~"([^"]*)"', expressions))
    for code in left_out.split("|"):
        literal = re.compile(f'"{code.replace(".*", "[a-z_]+")}"')
        sources = (path for part in ("producers", "worker") for path in (ROOT / part).rglob("*.py"))
        assert any(literal.search(path.read_text(encoding="utf-8")) for path in sources), code
    table = (ROOT / "docs" / "events.md").read_text(encoding="utf-8").partition("## Why a job failed")[2]
    *theirs, ours = re.findall(r"^\| ([^|]*`[^|]*) \|", table.partition("\n## ")[0], re.MULTILINE)
    codes = {code for row in theirs for code in re.findall(r"`(\w+)(?:\.\.\.)?`", row)}
    assert len(codes) > 6
    assert [code for code in codes if not re.fullmatch(left_out, code)] == []
    assert [code for code in re.findall(r"`(\w+)`", ours) if re.fullmatch(left_out, code)] == []
