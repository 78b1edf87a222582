"""``finetune submit`` with a request on each line: what is told of each, what is repeated, and what is not."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_queue.cli.lines import LONGEST, Lines
from finetune_queue.cli.output import CliError, ExitCode
from finetune_queue.contract import JobState
from finetune_queue.sdk import submitting
from support.cli import Run, Worker
from support.images import make_dataset_folder
from support.samples import sample
from support.until import until

pytestmark = pytest.mark.usefixtures("queue_url")

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of lines: a request as JSON, or a text as it is."""

    def write(*lines: object, name: str = "jobs.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines) + "\n")
        return path

    return write


def names(worker: Worker) -> list[str]:
    return sorted(job.request.name for job in worker.newest())


def test_where_every_line_was_refused_there_is_nothing_to_follow(run: Run, worker: Worker, write: Write) -> None:
    result = run("submit", "--file", write("{}", name="only.jsonl"))
    assert result.out == "0 new jobs on the queue.\n1 line was refused.\n"
    assert worker.newest() == []


def test_every_good_line_is_submitted_and_every_bad_one_named(run: Run, worker: Worker, write: Write) -> None:
    lines = [
        *(sample(name="a"), "", '{"name": "b"', sample(name="c", nmae=1)),
        *([sample()], sample(name="d", labels=7), sample(name="e", idempotency_key="known")),
        *(sample(name="f", idempotency_key="known"), sample(name="g")),
    ]
    result = run("submit", "--file", write(*lines), "--label", "team=x", "--priority", 7)

    assert result.code == ExitCode.FAILED
    assert result.out == "3 new jobs on the queue.\n5 lines were refused.\nFollow them: finetune watch\n"
    errors = sorted(result.err.splitlines())
    assert [line.split(":")[0] for line in errors] == [f"line {number}" for number in (3, 4, 5, 6, 8)]
    assert errors[0] == "line 3: the line is not JSON: Expecting ',' delimiter (column 13)."
    assert "nmae: is not a field" in errors[1]
    assert "one JSON object" in errors[2]
    assert "labels" in errors[3]
    assert "idempotency key belongs to job" in errors[4]
    assert names(worker) == ["a", "e", "g"]
    assert all((job.request.labels, job.request.priority) == ({"team": "x"}, 7) for job in worker.newest())


def test_as_json_every_line_has_one_document(run: Run, worker: Worker, write: Write) -> None:
    file = write(sample(name="a"), "no", sample(name="b", idempotency_key="k"), sample(name="b", priority=10))
    result = run("submit", "--file", file, "--json")
    assert result.code == ExitCode.FAILED
    assert result.err == ""
    first, bad, last, refused = sorted(result.json_lines, key=lambda each: int(each["line"]))
    jobs = {job.request.name: job for job in worker.newest()}
    assert last == {"line": 3, "job_id": jobs["b"].id, "state": "accepted", "new": True, "idempotency_key": "k"}
    assert first["job_id"] == jobs["a"].id
    assert first["idempotency_key"] == jobs["a"].request.idempotency_key
    assert bad["error"]["code"] == "usage"
    assert refused["error"]["code"] == "invalid_request"
    assert refused["error"]["problems"] == ["priority: should be less than or equal to 9"]


def test_a_repeated_file_submits_only_what_is_missing(run: Run, worker: Worker, write: Write) -> None:
    assert run("submit", "--file", write(sample(name="a"), sample(name="b"))).code == ExitCode.OK
    worker.bring(next(job for job in worker.newest() if job.request.name == "a"), JobState.SUCCEEDED)

    again = run("submit", "--file", write(sample(name="new"), sample(name="b"), sample(name="a"), sample(name="a")))

    assert again.code == ExitCode.OK
    assert again.out.splitlines()[:2] == [
        "1 new job on the queue.",
        "3 lines had a job already (2 succeeded, 1 accepted).",
    ]
    assert names(worker) == ["a", "b", "new"]
    other = run("submit", "--file", write(sample(name="a")), "--idempotency-key", "once-more")
    assert other.out.startswith("1 new job on the queue.\n")


def test_a_local_folder_on_each_line(run: Run, worker: Worker, write: Write, tmp_path: Path) -> None:
    folder = str(make_dataset_folder(tmp_path / "images"))
    result = run("submit", "--file", write(sample(name="a", dataset=folder), sample(name="b", dataset="gone")))
    assert result.code == ExitCode.FAILED
    assert "line 2: dataset: There is no file or folder gone" in result.err
    [job] = worker.newest()
    assert job.request.dataset.startswith("file://")


def test_lines_come_from_standard_input_or_a_file_of_any_name(
    run: Run, worker: Worker, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("submit", "--file", write(sample(name="a"), sample(name="b"), name="jobs.txt"), "--jsonl").code == 0
    with write(sample(name="c")).open("rb") as stream:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stream))
        assert run("submit", "--file", "-", "--jsonl").code == ExitCode.OK
    assert names(worker) == ["a", "b", "c"]


def test_lines_are_submitted_as_they_come(
    run: Run, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "LONGEST_GATHERING", 0.0)
    pipe = tmp_path / "slow.jsonl"
    os.mkfifo(pipe)

    def send() -> None:
        with pipe.open("w") as stream:
            for number in range(3):
                until(lambda: len(names(worker)) == number, seconds=30)  # noqa: B023 - called at once
                stream.write(json.dumps(sample(name=f"job-{number}")) + "\n")
                stream.flush()

    sender = threading.Thread(target=send)
    sender.start()
    result = run("submit", "--file", pipe)
    sender.join()
    assert result.out.startswith("3 new jobs on the queue.\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--wait",), "--wait follows one job"),
        (("--deadline", "2h"), "Give a point in time"),
        (("--idempotency-key", ""), "names the batch"),
        (("--idempotency-key", "x" * 191), "1 to 190 characters"),
        (("--idempotency-key", os.fsdecode(b"\xff")), "1 to 190 characters"),
        (("--param", "face_crop=False"), "the value is not JSON"),
    ],
)
def test_options_that_many_requests_cannot_have(
    run: Run, worker: Worker, write: Write, arguments: tuple[str, ...], said: str
) -> None:
    result = run("submit", "--file", write(sample()), *arguments)
    assert result.code == ExitCode.USAGE
    assert said in result.err
    assert names(worker) == []


def test_a_file_with_nothing_in_it_or_none(run: Run, write: Write) -> None:
    assert "holds no request" in run("submit", "--file", write("", " ")).err
    assert run("submit", "--file", write("")).code == ExitCode.USAGE
    assert "missing.jsonl cannot be read: No such file" in run("submit", "--file", "missing.jsonl").err
    assert "--jsonl needs --file" in run("submit", "--jsonl").err


def test_a_queue_out_of_reach_is_said_once(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_REDIS_URL", "redis://127.0.0.1:1/0")
    file = write(sample(name="a"), "no", sample(name="b"))
    result = run("submit", "--file", file)
    assert result.code == ExitCode.UNAVAILABLE
    [bad, error] = result.err.splitlines()
    assert bad.startswith("line 2: ")
    assert "out of reach" in error
    assert error.endswith("Run the same command again: it submits what is missing, and nothing twice.")
    as_json = run("submit", "--file", file, "--json")
    assert as_json.error["code"] == "queue_unavailable"
    assert as_json.error["refused"] == 1
    assert [each["error"]["code"] for each in as_json.json_lines] == ["usage", *["queue_unavailable"] * 2]


def read(path: Path) -> list[tuple[int, Any]]:
    with Lines.of(str(path)) as lines:
        found = list(lines)
        assert (lines.done, lines.size) == (path.stat().st_size, path.stat().st_size)
    return found


def test_lines_keep_their_numbers_whatever_stands_in_them(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"b": "\xff"}\n'
        b'{"c": "' + b"x" * (3 * LONGEST) + b'"}\n{"d": 1}{"e": 2}\n' + b"[" * 50_000 + b'\n{"last": true}'
        b'\n{"f": 1, "f": 2}'
    )
    found = read(path)
    assert [number for number, _ in found] == [1, 3, 4, 5, 6, 7, 8]
    bodies = dict(found)
    assert (bodies[1], bodies[7]) == ({"a": 1}, {"last": True})
    said = [str(bodies[number]) for number in (3, 4, 5, 6, 8)]
    assert said == [
        "the line is not UTF-8 text.",
        "the line is longer than 262,144 bytes.",
        "the line is not JSON: Extra data (column 9).",
        "the line is nested too deeply.",
        'the line has the member "f" more than once.',
    ]
    assert all(isinstance(bodies[number], CliError) for number in (3, 4, 5, 6, 8))


def test_a_line_as_long_as_may_be_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": "' + b"x" * (LONGEST - 10) + b'"}\n{"b": 1}\n')
    assert [type(body) for _, body in read(path)] == [dict, dict]
