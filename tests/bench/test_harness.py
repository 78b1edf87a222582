"""The benchmarks: every contestant still runs, and the figures follow from what was seen. No time is judged."""

import asyncio
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from finetune_queue.local.processes import Child

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The harness' modules; it is a program beside the packages, not one of them."""
    for folder in (ROOT, ROOT / "ops" / "bench"):
        monkeypatch.syspath_prepend(folder)
    names = ("cases", "gateway", "measures", "plot", "publish", "report", "run", "submits", "transfers")
    found = SimpleNamespace(**{name: import_module(f"finetune_bench.{name}") for name in names})
    monkeypatch.setattr(found.run, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(Child, "stop", lambda child, **_: child.kill())  # nothing is read of how they end
    return found


def case(bench: SimpleNamespace, **changes: Any) -> Any:
    fields = {"jobs": 3, "calls": 10, "window": 1.0, "training": 0.3, "scale": 60.0}
    return bench.cases.Case(name="smoke", title="a few jobs", **fields | changes)


def seen(calls: int, rejected: int = 0) -> dict[str, Any]:
    account = {"calls": calls, "rejected": rejected, "most_calls_in_window": 7, "most_admitted_in_window": 6}
    return {"accounts": {"account-1": account}, "calls": {"list": {"200": 2, "429": rejected}}}


def result(bench: SimpleNamespace, of: Any, times: list[float], **report: int) -> Any:
    starts = [time - of.training - 0.5 for time in times]
    return bench.measures.result(
        of,
        "ours-1",
        processes=1,
        start_times=starts,
        finish_times=times,
        report=seen(**report),
        memory=90_000_000,
    )


@pytest.mark.long
@pytest.mark.parametrize("contestant", ["tutorial", "careful", "ours-1"])
def test_a_contestant_brings_its_jobs_through(bench: SimpleNamespace, tmp_path: Path, contestant: str) -> None:
    few = case(bench)
    found = bench.run.run(few, contestant, tmp_path / "run")

    assert (found.finished, found.jobs) == (3, 3)
    assert found.calls == sum(found.calls_by_operation[name] for name in ("presign", "submit", "list", "details")
                              if name in found.calls_by_operation)  # fmt: skip
    assert found.calls_per_job == pytest.approx(found.calls / 3)
    assert found.of_shortest == pytest.approx(few.shortest / max(found.finish_times))
    assert found.most_admitted_in_window <= few.calls
    assert found.notice > 0
    assert found.memory > 10_000_000
    assert json.loads(json.dumps(found.as_dict()))["case"] == "smoke"
    if contestant == "ours-1":
        assert found.rejected == 0


@pytest.mark.long
def test_a_run_without_a_limit_counts_what_each_process_used(bench: SimpleNamespace, tmp_path: Path) -> None:
    overhead = import_module("finetune_bench.overhead")
    found = overhead._run(replace(overhead.CASE, jobs=3), overhead.ENTRIES["ours-threads"], tmp_path / "run")
    assert found["commands"] > 50
    assert all(found[name] > 0 for name in ("worker_ms", "sandbox_ms", "redis_ms", "jobs_per_s", "memory"))
    row = overhead._row("ours", [found, found | {"jobs_per_s": 1.0}], [found | {"jobs_per_s": 2.0}] * 2)
    assert row["of_the_bare_chain"] == pytest.approx((found["jobs_per_s"] / 2 + 0.5) / 2, abs=0.01)


def test_the_figures_of_a_run(bench: SimpleNamespace) -> None:
    steady = case(bench, jobs=30, calls=10, window=1.0, training=2.0, backlog=True)
    assert (steady.ceiling, steady.shortest) == (5.0, 8.0)
    # A perfect run: the first window's burst of five jobs at once, then five in each second.
    perfect = result(bench, steady, [2.0 + number // 5 for number in range(30)], calls=66)
    assert perfect.of_ceiling == pytest.approx(30 / 5.0 / 5.0)
    assert result(bench, case(bench, jobs=30), [2.0] * 30, calls=60).of_ceiling is None
    assert perfect.of_shortest == pytest.approx(8.0 / 7.0)
    assert perfect.calls_per_job == pytest.approx(2.2)
    assert perfect.notice == pytest.approx(0.5)


def test_a_run_that_was_stopped_is_judged_by_what_it_finished(bench: SimpleNamespace) -> None:
    steady = case(bench, jobs=30, calls=10, window=1.0, training=2.0, backlog=True)
    stopped = result(bench, steady, [5.0] * 20, calls=80, rejected=40)
    assert (stopped.seconds, stopped.of_shortest) == (None, None)
    assert stopped.of_ceiling == pytest.approx(20 / (steady.patience - 2.0) / 5.0)
    assert stopped.rejected == 40
    nothing = result(bench, steady, [], calls=80)
    assert (nothing.of_ceiling, nothing.calls_per_job) == (0.0, None)


def test_the_tables_and_the_plot(bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = case(bench)
    rows = [result(bench, few, [2.0, 2.5, 3.0], calls=7), result(bench, few, [], calls=9, rejected=9)]
    lines = bench.report.markdown(few, rows).splitlines()
    assert lines[0] == "**a few jobs**"
    assert [line.count("|") for line in lines[2:]] == [len(bench.report.COLUMNS)] * 4  # without a backlog's
    assert "of the ceiling" in bench.report.markdown(replace(few, backlog=True), [])
    assert "3 of 3" in lines[4]
    assert " - " in lines[5]

    picture = ET.fromstring(bench.plot.svg(few, rows))
    assert len(picture.findall("{http://www.w3.org/2000/svg}polyline")) == 1 + len(rows)

    page = tmp_path / "benchmarks.md"
    page.write_text("before\n<!-- budget: written by make bench -->\nold\n<!-- budget: end -->\nafter\n")
    monkeypatch.setattr(bench.publish, "PAGE", page)
    monkeypatch.setattr(bench.publish, "DOCS", tmp_path)
    monkeypatch.setitem(bench.publish.CASES, "smoke", few)
    bench.publish.budget("budget", {"smoke": [row.as_dict() for row in rows]}, bench.report.machine())
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "a few jobs" in text


def test_every_way_of_submitting_is_timed(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.submits, "QUICK", 20)
    monkeypatch.setattr(bench.submits, "ROUNDS", 1)
    found = bench.submits.measure(tmp_path / "submits", Console(quiet=True), SimpleNamespace(quick=True))
    bare, *ours = found["submits"]
    assert (bare["way"], bare["of_bare_messages"]) == (bench.submits.BARE, 1.0)
    assert [row["way"] for row in ours] == ["submit", "submit_many"]
    assert all(row["per_second"] > 0 and row["requests"] == 20 for row in found["submits"])


def test_the_gateway_is_measured_beside_a_bare_application(bench: SimpleNamespace, tmp_path: Path) -> None:
    with bench.gateway.targets(tmp_path) as (gateway, bare):
        for target in (gateway, bare):
            asyncio.run(bench.gateway.load(target, clients=2, count=5))
    for what in ("submit, 2 at once", "get, 2 at once"):
        found = bench.gateway.row(what, gateway, bare)
        assert found["share"] == pytest.approx(bare.spent[what] / gateway.spent[what], abs=0.01)
        assert len(gateway.times[what]) == len(bare.times[what]) == 5


def test_a_transfer_is_that_of_a_worker(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is timed beside curl: the whole file comes, is found good and is stored."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "ops" / "bench"))
    weights = bench.transfers._weights(tmp_path, 2_000_000)
    with bench.transfers._file_server(tmp_path, tmp_path, 125_000_000) as url:
        took = bench.transfers._step("weights", f"{url}/{weights.name}", str(tmp_path / "got"))
    assert (tmp_path / "got.stored" / "weights.safetensors").read_bytes() == weights.read_bytes()
    assert 0 < took["grown"] < took["peak"]
    assert took["seconds"] >= 2_000_000 / 125_000_000 * 0.8


def test_the_page_in_docs_has_its_places(bench: SimpleNamespace) -> None:
    page = bench.publish.PAGE.read_text()
    for name in import_module("finetune_bench.__main__").PARTS:
        assert f"<!-- {name}: written by make bench -->" in page
        assert f"<!-- {name}: end -->" in page
