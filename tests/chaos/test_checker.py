"""The judge, on made-up histories: a good one passes, and each promise can be broken."""

import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_queue.contract import EventType
from finetune_queue.store import connect, keys
from support.until import until

KINDS = frozenset(map(str, EventType))
GOOD = ("accepted", "uploading", "submitting", "training", "downloading", "succeeded")
RETRIED = ("accepted", "uploading", "submitting", "training", "failed", "submitting", "training", "cancelled")

History = Any
Change = Callable[[SimpleNamespace, History], History]


def events(job_id: str, states: tuple[str, ...], code: str = "training_failed") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number, state in enumerate(states, start=1):
        data = {"state": state, "previous_state": found[-1]["data"]["state"] if found else None}
        error = {"error": {"code": code}} if state == "failed" else {}
        found.append(
            {
                "id": f"{job_id}-{number}",
                "type": f"io.finetunequeue.job.{state}.v1",
                "subject": job_id,
                "data": {**data, **error},
            }
        )
    return found


@pytest.fixture
def good(chaos: SimpleNamespace) -> History:
    """Two jobs: a good one, and one whose training failed, was retried and then cancelled; and one bad message."""
    made = chaos.history
    a, b = events("job-a", GOOD), events("job-b", RETRIED)
    rejected = {"id": "m-rejected", "type": "io.finetunequeue.job.rejected.v1", "subject": "m", "data": {}}
    return made.History(
        seed=1,
        seconds=10.0,
        promises=[made.Promise("job-a", "face-a"), made.Promise("job-b", "face-b")],
        jobs={
            "job-a": made.SeenJob("job-a", "face-a", "succeeded", "t1", "hash-1", "", a),
            "job-b": made.SeenJob("job-b", "face-b", "cancelled", "t3", None, "", b),
        },
        trainings=[
            made.SeenTraining("t1", "face-a", "http://s3/1-job-a.zip", "AVAILABLE", "hash-1"),
            made.SeenTraining("t2", "face-b", "http://s3/2-job-b.zip", "FAILED", "hash-2"),
            made.SeenTraining("t3", "face-b", "http://s3/2-job-b.zip", "AVAILABLE", "hash-3"),
        ],
        stream=[*a[:3], *b[:4], rejected, *a[3:], *b[4:]],
        # The third event of a came twice, the second time late.
        sinks=[made.SeenSink("web", [*a[:4], a[2], *a[4:]], frozenset({"job-a"}), KINDS)],
        accounts=[made.SeenAccount("default", limit=5, most_in_window=5, refused=0, calls=20)],
        files={"job-a": {"weights.safetensors": "hash-1", "manifest.json": "x", ".weights.safetensors.1.part": "y"}},
        manifests={"job-a": {"finetune_id": "t1", "weights": {"sha256": "hash-1"}}},
        poisoned=["m"],
        dead_letters=frozenset({"m"}),
        asked_to_cancel=frozenset({"job-b"}),
        asked_to_retry={"job-b": 1},
        left_over={"deadlines": 0},
        fired={"list reset": 2},
        expected_kinds=["list reset"],
    )


def test_nothing_is_wrong_with_a_good_history(chaos: SimpleNamespace, good: History) -> None:
    assert {name: said for name, said in chaos.checker.judge(good).items() if said} == {}


def job(history: History, job_id: str, **fields: Any) -> History:
    """Change a job, and the stream with its events."""
    changed = replace(history.jobs[job_id], **fields)
    rest = [event for event in history.stream if event["subject"] != job_id]
    return replace(history, jobs={**history.jobs, job_id: changed}, stream=[*rest, *changed.events])


def training(chaos: SimpleNamespace, history: History, *row: str) -> History:
    return replace(history, trainings=[*history.trainings, chaos.history.SeenTraining(*row)])


def sink(history: History, **fields: Any) -> History:
    return replace(history, sinks=[replace(history.sinks[0], **fields)])


def account(history: History, **fields: Any) -> History:
    return replace(history, accounts=[replace(history.accounts[0], **fields)])


def without(items: Any, index: int) -> list[Any]:
    return [item for at, item in enumerate(items) if at != index]


def access(event_id: str, state: str) -> dict[str, Any]:
    data = {"state": state, "previous_state": state}
    return {"id": event_id, "type": "io.finetunequeue.job.access.v1", "subject": event_id[:-2], "data": data}


def test_a_failed_training_that_nobody_retried_allows_no_other(chaos: SimpleNamespace, good: History) -> None:
    told = [*events("job-b", RETRIED[:5]), access("job-b-6", "failed")]
    failed = job(good, "job-b", state="failed", events=told)
    assert list(chaos.checker.paid_twice(failed)) != []
    assert list(chaos.checker.events_wrong(failed)) == []


BROKEN: dict[str, tuple[str, Change]] = {
    "a second training": ("paid twice", lambda c, h: training(c, h, "t9", "face-a", "http://s3/public", "FAILED", "x")),
    "a training under another name": (
        "paid twice",
        lambda c, h: training(c, h, "t9", "face-x", "http://s3/9-job-a.zip", "AVAILABLE", "x"),
    ),
    "a third after one failure": ("paid twice", lambda c, h: training(c, h, "t9", "face-b", "", "AVAILABLE", "x")),
    "a retry of what did not fail at Segmind": (
        "paid twice",
        lambda c, h: job(h, "job-b", events=events("job-b", RETRIED, code="weights_missing")),
    ),
    "one training of two jobs": ("paid twice", lambda c, h: job(h, "job-b", finetune_id="t1")),
    "nobody's training": ("paid twice", lambda c, h: training(c, h, "t9", "face-x", "", "AVAILABLE", "x")),
    "a job that is gone": ("lost", lambda c, h: replace(h, jobs={"job-b": h.jobs["job-b"]}, stream=h.stream[3:7])),
    "a job that goes on": (
        "lost",
        lambda c, h: job(h, "job-a", state="downloading", events=events("job-a", GOOD[:-1])),
    ),
    "a job that failed": ("lost", lambda c, h: job(h, "job-a", state="failed")),
    "a job of another request": ("lost", lambda c, h: job(h, "job-a", name="face-x")),
    "a job nobody wants": ("lost", lambda c, h: replace(h, promises=h.promises[:1])),
    "no dead letter": ("lost", lambda c, h: replace(h, dead_letters=frozenset())),
    "no event of the rejection": (
        "lost",
        lambda c, h: replace(h, stream=[event for event in h.stream if event["subject"] != "m"]),
    ),
    "a missing event": ("events wrong", lambda c, h: job(h, "job-a", events=without(h.jobs["job-a"].events, 2))),
    "an event twice": (
        "events wrong",
        lambda c, h: job(h, "job-a", events=[*h.jobs["job-a"].events, h.jobs["job-a"].events[-1]]),
    ),
    "two ends": (
        "events wrong",
        lambda c, h: job(h, "job-a", state="cancelled", events=events("job-a", (*GOOD, "cancelled"))),
    ),
    "a change of access from another state": (
        "events wrong",
        lambda c, h: job(h, "job-a", events=[*h.jobs["job-a"].events, access("job-a-7", "cancelled")]),
    ),
    "a leap": ("events wrong", lambda c, h: job(h, "job-a", events=events("job-a", ("accepted", "succeeded")))),
    "a retry nobody asked for": ("events wrong", lambda c, h: replace(h, asked_to_retry={})),
    "a cancel nobody asked for": ("events wrong", lambda c, h: replace(h, asked_to_cancel=frozenset())),
    "another state than told": ("events wrong", lambda c, h: job(h, "job-b", state="failed")),
    "a stream in another order": ("events wrong", lambda c, h: replace(h, stream=list(reversed(h.stream)))),
    "a stream without one": ("events wrong", lambda c, h: replace(h, stream=h.stream[:-1])),
    "a sink without one": ("events wrong", lambda c, h: sink(h, got=without(h.sinks[0].got, 1))),
    "a sink out of order": (
        "events wrong",
        lambda c, h: sink(h, got=[h.sinks[0].got[1], h.sinks[0].got[0], *h.sinks[0].got[2:]]),
    ),
    "a sink that got another's": ("events wrong", lambda c, h: sink(h, got=[*h.sinks[0].got, h.stream[4]])),
    "a delivery that is not ours": ("events wrong", lambda c, h: sink(h, forged=1)),
    "other bytes": (
        "files wrong",
        lambda c, h: replace(h, files={"job-a": {**h.files["job-a"], "weights.safetensors": "hash-2"}}),
    ),
    "no file": ("files wrong", lambda c, h: replace(h, files={})),
    "no manifest": ("files wrong", lambda c, h: replace(h, manifests={})),
    "a half of a file": (
        "files wrong",
        lambda c, h: replace(h, files={**h.files, "job-b": {"weights.safetensors": "half"}}),
    ),
    "another file": ("files wrong", lambda c, h: replace(h, files={**h.files, "job-b": {"weights.tmp": "x"}})),
    "a model that is not as public as is said": ("access wrong", lambda c, h: job(h, "job-a", public=True)),
    "a call too many": ("limit broken", lambda c, h: account(h, most_in_window=6)),
    "a refused call": ("limit broken", lambda c, h: account(h, refused=1)),
    "a secret": ("secrets seen", lambda c, h: replace(h, leaks=["worker1.log, line 3: API key of default"])),
    "a wrong answer": ("callers told wrong", lambda c, h: replace(h, answers=["a hook was answered with 202"])),
    "a worker that crashed": ("processes ended or hung", lambda c, h: replace(h, ended=["worker1 ended by itself"])),
    "a crash": ("crashes logged", lambda c, h: replace(h, crashes=["worker1.log, line 3: stage_crashed"])),
    "a deadline of an ended job": ("left over", lambda c, h: replace(h, left_over={"deadlines": 1})),
    "a fault that was not there": ("faults that never fired", lambda c, h: replace(h, fired={})),
}


@pytest.mark.parametrize("what", BROKEN)
def test_each_promise_can_be_broken(chaos: SimpleNamespace, good: History, what: str) -> None:
    promise, change = BROKEN[what]
    assert chaos.checker.judge(change(chaos, good))[promise]


SIGNATURE = "X-Amz-Signature=" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "line",
    [
        "x-api-key: SG_0123456789",
        '{"body": "' + b64encode(b'[["SG_0123456789"], {}]').decode() + '"}',
        f"PUT http://127.0.0.1/x.zip?{SIGNATURE}",
    ],
    ids=["plain", "in a Celery message", "of a presigned URL"],
)
def test_secrets_are_found(chaos: SimpleNamespace, line: str) -> None:
    secrets = {"API key": "SG_0123456789"}
    assert len(list(chaos.witness.find_leaks("log", ["fine", line, line], secrets))) == 1


def test_what_is_published_is_there_to_be_read_at_once(chaos: SimpleNamespace, redis_url: str, tmp_path: Path) -> None:
    """The witness reads it before the listener has ended."""
    path = tmp_path / "published.log"
    with chaos.witness.Listener(redis_url, path), connect(redis_url) as client:
        until(lambda: client.publish("celeryev", "SG_0123456789") > 0, seconds=30)
        until(lambda: path.read_text() == "celeryev SG_0123456789\n", seconds=30)


def test_a_presigned_upload_is_kept_in_redis_under_its_own_key_alone(chaos: SimpleNamespace) -> None:
    value = ["$210", json.dumps({"url": SIGNATURE})]
    upload, record = ["$40", keys.upload_url("a-b-c")], ["$40", keys.job("a-b-c")]
    assert list(chaos.witness.find_leaks("log", [*upload, *value], {})) == []
    assert len(list(chaos.witness.find_leaks("log", [*record, *value], {}))) == 1


def test_a_script_follows_from_its_seed_and_leaves_nothing_out(chaos: SimpleNamespace) -> None:
    one = chaos.script.write(7, 120, 200)
    assert one == chaos.script.write(7, 120, 200)
    assert one != chaos.script.write(8, 120, 200)
    assert len(one.orders) == 200
    assert {act.kind for act in one.acts} == set(one.kinds)
    # Three looks in a row must not miss a training by chance: that would be Segmind's fault, and paid twice.
    partial = [act for act in one.acts if act.kind == "list partial_list"]
    assert all(act.args["count"] == 1 for act in partial)
    assert len(partial) <= 4


def test_the_table_and_its_json(chaos: SimpleNamespace, good: History, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    good = replace(good, fired={"list reset": 2, "list slow": 0})  # armed, and met no call
    verdict = chaos.checker.judge(account(good, refused=3))
    chaos.report.print_result(good, verdict, Console(width=100))
    said = capsys.readouterr().out
    assert "default: 3 calls were refused for the limit" in said
    body = json.loads(json.dumps(chaos.report.as_dict(good, verdict)))
    assert body["evidence"]["paid twice"] == []
    assert len(body["evidence"]["limit broken"]) == 1
    assert ["jobs promised", 2, "and 1 messages that cannot become jobs"] in body["outcomes"]
    assert body["faults"] == [["faults", 2, "of 1 kinds"], ["  list", 2, "reset 2; slow 0"]]
