"""Submitting and reading jobs: what is printed, as text and as JSON, and the exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_queue.cli.output import ExitCode
from finetune_queue.contract import FineTuneRequest, JobState, new_job_id
from finetune_queue.contract.request import STORED
from finetune_queue.datasets.report import DatasetReport, finding
from finetune_queue.store import connect, keys
from support.cli import Run, Worker
from support.images import make_dataset_folder
from support.samples import sample

ID = "01a213e8-2f10-7d71-8fd6-0e5b4c7a9d21"
SUBMIT = ("submit", "--dataset", "https://example.com/faces.zip", "-n", "a-face", "-p", "photo of 1MAN", "-t", "1MAN")
NOBODY = "redis://127.0.0.1:1/0"
"""Where nothing listens."""

pytestmark = pytest.mark.usefixtures("queue_url")


def test_submit_prints_the_job_and_how_to_follow_it(run: Run, worker: Worker) -> None:
    result = run(*SUBMIT, "--label", "team=a", "--priority", 7)
    [job] = worker.newest()
    assert result.code == ExitCode.OK
    assert result.out == f"Job {job.id} is on the queue.\nFollow it: finetune watch {job.id}\n"
    assert job.request.labels == {"team": "a"}
    assert job.request.priority == 7


def test_a_submit_without_its_broker_says_that_the_job_is_kept(
    run: Run, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_BROKER_URL", NOBODY)
    result = run(*SUBMIT)
    [job] = worker.newest()
    assert (result.code, job.state) == (ExitCode.OK, JobState.ACCEPTED)
    assert job.id in result.err
    assert "they are kept, and start some time after the broker is back" in result.err


def test_without_a_worker_submit_status_and_watch_say_so(run: Run, queue_url: str) -> None:
    said = "no worker is running: it waits until one is started"
    assert run(*SUBMIT).out.endswith(f"\nNote: {said}.\n")
    with connect(queue_url) as client:
        worker = Worker(client)
        [job] = worker.newest()
        assert said in run("status", job.id).out
        assert said in run("watch", job.id, "--timeout", 0).out
        worker.bring(job, JobState.SUCCEEDED)
    assert said not in run("status", job.id).out


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--deadline", "2026-01-31T18:00:00Z", "deadline: 2026-01-31T18:00:00+00:00 has already passed"),
        ("--deadline", "tomorrow", "with a time zone, like 2026-01-31T18:00:00Z, or from now: 90m, 2h, 1d"),
        ("--account", "a b", "account: should be letters, digits and . _ -"),
    ],
)
def test_a_value_that_cannot_be_read_says_what_can(run: Run, option: str, value: str, said: str) -> None:
    result = run(*SUBMIT, option, value)
    assert result.code == ExitCode.USAGE
    assert said in result.err


def test_submit_as_json_is_the_job_and_nothing_else(run: Run, worker: Worker) -> None:
    result = run(*SUBMIT, "--json")
    [job] = worker.newest()
    assert result.json["job_id"] == job.id
    assert result.json["state"] == "accepted"
    assert result.json["request"]["name"] == "a-face"
    assert result.err == ""


def test_submit_takes_a_request_from_a_file(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text(json.dumps(sample(name="from-file")), encoding="utf-8")
    assert run("submit", "--file", file, "--json").json["request"]["name"] == "from-file"


def test_submit_packs_and_stages_a_local_folder(run: Run, tmp_path: Path) -> None:
    folder = make_dataset_folder(tmp_path / "images")
    request = run(*SUBMIT[:2], folder, *SUBMIT[3:], "--json").json["request"]
    assert request["dataset"].startswith("file://")
    assert request["dataset"].endswith(".zip")


def test_a_request_that_comes_too_late_is_refused_before_its_dataset_is_staged(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    staging = tmp_path / "staging"
    monkeypatch.setenv("FINETUNE_STAGING_URL", staging.as_uri())
    folder = make_dataset_folder(tmp_path / "images", count=2)
    result = run(*SUBMIT[:2], folder, *SUBMIT[3:], "--deadline", "2026-01-31T18:00:00Z")
    assert result.code == ExitCode.USAGE
    assert result.err.splitlines()[1:] == ["  deadline: 2026-01-31T18:00:00+00:00 has already passed"]
    assert not staging.exists()


def test_submit_and_status_say_what_trains_badly(run: Run, worker: Worker, tmp_path: Path) -> None:
    folder = make_dataset_folder(tmp_path / "images", count=2)
    few = "There are 2 images. Use 10 to 30 images with different backgrounds, poses and light."
    prompt = 'The instance prompt does not have the trigger word "zxq". Put the trigger word into the instance prompt.'
    submitted = run(*SUBMIT[:2], folder, *SUBMIT[3:-1], "zxq")
    said = submitted.err.splitlines()
    assert f"Warning: {few}" in said
    assert f"Warning: {prompt}" in said

    findings = [
        finding("few_images", "There are 2 images."),
        *(finding("image_small", "300 x 300 pixels.", file) for file in ("a.jpg", "b.jpg")),
        finding("no_captions", "No image has a caption."),
    ]
    report = DatasetReport(ok=True, images=2, findings=tuple(findings), omitted={"image_small": 3})
    job = worker.note(worker.accept(), dataset_report=report.model_dump(mode="json"))
    lines = [line.split(maxsplit=1)[1] for line in run("status", job.id).out.splitlines() if "  warning" in line]
    assert lines == [
        few,
        "a.jpg: 300 x 300 pixels. (4 more like this) Use a larger original: scaling a small picture up adds no detail.",
    ]


def test_the_same_key_and_request_find_the_job(run: Run, worker: Worker) -> None:
    first = run(*SUBMIT, "--idempotency-key", "k", "--json").json["job_id"]
    worker.bring(worker.store.get(first), JobState.TRAINING)
    again = run(*SUBMIT, "--idempotency-key", "k")
    assert again.out == f"Job {first} was submitted before and is training.\n"
    other = run(*SUBMIT, "--idempotency-key", "k", "--steps", 5, "--json")
    assert other.code == ExitCode.CONFLICT
    assert other.error["code"] == "idempotency_conflict"
    assert other.out == ""


def test_a_request_that_cannot_be_accepted_names_everything(run: Run, worker: Worker) -> None:
    result = run("submit", "--name", "x", "--priority", 11)
    assert result.code == ExitCode.USAGE
    assert result.err.startswith("error: The fine-tune request cannot be accepted:\n")
    for line in ("dataset (--dataset): is required", "priority: should be less than or equal to 9"):
        assert f"\n  {line}\n" in result.err
    assert worker.newest() == []


def test_the_same_as_json(run: Run) -> None:
    error = run("submit", "--json").error
    assert error["code"] == "invalid_request"
    assert error["exit_code"] == ExitCode.USAGE
    assert "dataset (--dataset): is required" in error["problems"]


def test_a_dataset_that_is_not_there(run: Run) -> None:
    result = run(*SUBMIT[:2], "no/such/folder", *SUBMIT[3:])
    assert result.code == ExitCode.USAGE
    assert "There is no file or folder no/such/folder" in result.err


def test_a_url_where_a_folder_or_zip_on_this_machine_is_meant(run: Run) -> None:
    for result in (
        run("dataset", "check", "https://example.com/a.zip"),
        run(*SUBMIT[:2], "ftp://host/a.zip", *SUBMIT[3:]),
    ):
        assert result.code == ExitCode.USAGE
        assert "is not a folder or ZIP on this machine. A job takes https://" in result.err


def test_a_time_out_without_waiting_makes_no_sense(run: Run) -> None:
    assert run(*SUBMIT, "--timeout", 3).code == ExitCode.USAGE
    assert run("watch", "--timeout", 3).code == ExitCode.USAGE


def test_list_is_one_line_a_job_newest_first(run: Run, worker: Worker) -> None:
    first = worker.accept(name="one")
    second = worker.bring(worker.accept(name="two"), JobState.SUCCEEDED)
    lines = run("list").out.splitlines()
    assert [line.split()[:2] for line in lines] == [[second.id, "succeeded"], [first.id, "accepted"]]


def test_list_takes_filters(run: Run, worker: Worker) -> None:
    def listed(*options: object) -> list[str]:
        return [job["request"]["name"] for job in run("list", "--json", *options).json]

    worker.accept(name="one", labels={"team": "a"})
    worker.accept(name="two", labels={"team": "b"}, account="other")
    worker.bring(worker.accept(name="three", labels={"team": "a"}), JobState.TRAINING)
    assert listed() == ["three", "two", "one"]
    assert listed("--state", "training") == ["three"]
    assert listed("--account", "other") == ["two"]
    assert listed("--label", "team=a") == ["three", "one"]
    assert listed("--label", "team=a", "--limit", 1) == ["three"]


def test_list_of_nothing(run: Run) -> None:
    assert run("list").err == "There are no jobs yet.\n"
    nothing = run("list", "--state", "failed")
    assert (nothing.out, nothing.err) == ("", "No jobs match.\n")  # lines of the output go to `cut` and `xargs`
    assert run("list", "--json").json == []


def test_a_state_that_is_none(run: Run) -> None:
    result = run("list", "--state", "done")
    assert result.code == ExitCode.USAGE
    assert "Known: accepted, uploading" in result.err


def test_events_as_lines_and_as_json_lines(run: Run, worker: Worker) -> None:
    job = worker.bring(worker.accept(), JobState.SUCCEEDED)
    lines = run("events", job.id).out.splitlines()
    assert [line.split()[2] for line in lines] == [
        *("accepted", "uploading", "submitting", "training", "downloading", "succeeded"),
    ]
    assert lines[2].endswith("dataset: 8 images, 8 captions, 1.2 MB")
    found = run("events", job.id, "--json").json_lines
    assert [event["id"] for event in found] == [f"{job.id}-{number}" for number in range(1, 7)]
    assert found[-1]["type"] == "io.finetunequeue.job.succeeded.v1"


@pytest.mark.parametrize("command", ["status", "events", "cancel", "retry", "watch"])
def test_a_job_that_does_not_exist(run: Run, command: str) -> None:
    result = run(command, new_job_id(), "--json")
    assert (result.code, result.out) == (ExitCode.NOT_FOUND, "")
    assert result.error["code"] == "job_not_found"
    assert "It never existed, or ended longer ago than jobs are kept." in result.error["message"]


@pytest.mark.parametrize("command", ["status", "events", "cancel", "retry", "watch", "deliveries"])
@pytest.mark.parametrize("job_id", ["01a22a4c", "", "no-such-job", "\x1b[2J", "x" * 1000])
def test_what_is_no_whole_id_is_told_so(run: Run, command: str, job_id: str) -> None:
    result = run(command, job_id, "--json")
    assert (result.code, result.out) == (ExitCode.NOT_FOUND, "")
    assert result.error["code"] == "job_not_found"
    assert " is not a complete job id; one looks like " in result.error["message"]
    assert result.error["message"].isprintable()
    assert len(result.error["message"]) < 200


def test_the_case_of_an_id_and_blanks_around_it_do_not_count(run: Run, worker: Worker) -> None:
    job = worker.accept()
    typed = f" {job.id.upper()}\n"
    assert run("status", typed, "--json").json["job_id"] == job.id
    assert len(run("events", typed).out.splitlines()) == 1
    assert run("deliveries", typed).code == ExitCode.OK
    assert run("cancel", typed, "--json").json["state"] == "cancelled"


@pytest.mark.parametrize(
    "arguments", [SUBMIT, ["list"], ["status", ID], ["watch"], ["watch", ID], ["events", ID, "--follow"]]
)
def test_no_redis(run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setenv("FINETUNE_REDIS_URL", NOBODY)
    result = run(*arguments, "--json")
    assert (result.code, result.out) == (ExitCode.UNAVAILABLE, "")
    assert result.error["code"] == "queue_unavailable"
    assert "Check FINETUNE_REDIS_URL" in result.error["message"]


def test_wrong_settings_are_all_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_LEASE", "soon")
    monkeypatch.setenv("FINETUNE_REDIS_ULR", "x")
    result = run("list", "--json")
    assert result.code == ExitCode.SETTINGS
    assert [problem.partition(" ")[0] for problem in result.error["problems"]] == [
        "FINETUNE_REDIS_ULR",
        "FINETUNE_LEASE",
    ]
    text = run("list").err
    assert text.startswith("error: 2 settings are wrong:\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command 'nonsense'. See: finetune --help"),
        (["submt"], "No such command 'submt'. Did you mean 'submit'? See: finetune --help"),
        (["list", "--nonsense"], "No such option: --nonsense. See: finetune list --help"),
        (["status"], "Missing argument 'JOB'. See: finetune status --help"),
        (["list", "--limit"], "Option '--limit' requires an argument. See: finetune list --help"),
        (["submit", "--steps", "abc"], "Invalid value for '--steps': should be a whole number. See: finetune submit"),
        (["list", "--limit", "0"], "See: finetune list --help"),
        (["list", "--label", "a b=x"], "--label: a key should be letters, digits and . _ / -"),
    ],
)
def test_wrong_usage_is_one_sentence(run: Run, arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (ExitCode.USAGE, "")
    assert result.err.startswith("error: ")
    assert said in result.err
    assert run(*arguments, "--json").error["code"] == "usage"


def test_a_password_in_the_dataset_s_url_is_refused_and_not_repeated(run: Run, worker: Worker) -> None:
    result = run(*SUBMIT[:2], "https://me:hidden-pw@example.com/faces.zip", *SUBMIT[3:])
    assert result.code == ExitCode.USAGE
    assert "dataset: should hold no user name or password" in result.err
    assert "hidden-pw" not in result.err
    assert run("list", "--json").json == []


def test_a_defect_is_a_sentence_and_a_traceback_only_on_demand(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("finetune_queue.sdk.FineTuneQueue.list", broken)
    result = run("list")
    assert result.code == ExitCode.INTERNAL
    assert "KeyError: 'oops'" in result.err
    assert "Traceback" not in result.err
    assert "Traceback" in run("--traceback", "list").err


@pytest.mark.parametrize("command", ["status", "watch", "cancel", "retry"])
def test_a_job_of_a_newer_version_is_left_alone(run: Run, worker: Worker, queue_url: str, command: str) -> None:
    job = worker.accept()
    with connect(queue_url) as client:
        client.hset(keys.job(job.id), "state", "grading")
        result = run(command, job.id, "--json")
        assert (result.code, result.error["code"]) == (ExitCode.CONFLICT, "not_possible")
        assert "written by another version" in result.error["message"]
        assert client.hget(keys.job(job.id), "version") == str(job.version)


def test_a_name_is_printed_without_its_escape_sequences(run: Run, worker: Worker) -> None:
    """One that was accepted before a request could have none."""
    request = FineTuneRequest.model_validate(sample(name="evil \x1b]0;title\x07"), context=STORED)
    job, _ = worker.store.register(new_job_id(), request, delay=600)
    for arguments in (["list"], ["status", job.id]):
        assert "\x1b" not in run(*arguments).out


def test_a_dataset_that_is_staged_where_nobody_said_is_told_of(
    run: Run, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = make_dataset_folder(tmp_path / "photos")
    (tmp_path / "jobs.jsonl").write_text(
        "".join(json.dumps(sample(name=name, dataset=str(photos))) + "\n" for name in "ab")
    )
    local = (*SUBMIT[:2], photos, *SUBMIT[3:])
    note = f"Note: FINETUNE_STAGING_URL is not set, so the dataset was staged in {tmp_path}/var/staging."
    for arguments in (local, (*local, "--json"), ("submit", "--file", "jobs.jsonl")):
        result = run(*arguments)
        assert (result.code, result.err.count(note)) == (ExitCode.OK, 1)
        assert note not in result.out
    assert run(*SUBMIT).err == ""  # nothing was staged
    monkeypatch.setenv("FINETUNE_STAGING_URL", f"file://{tmp_path}/var/staging")
    assert note not in run(*local).err


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["submit", "-f", "a.json", "--file", "b.json"], "--file"),
        (["submit", "--name", "a", "-n", "b"], "--name"),
        (["list", "--state", "failed", "--state", "failed"], "--state"),
        (["gateway", "--port", "0", "--port", "1"], "--port"),
        (["webhooks", "list", "--account", "a", "--account", "b"], "--account"),
        (["account", "stop", "--json", "--json", "x", "y"], None),
    ],
)
def test_an_option_with_one_value_is_given_once(run: Run, arguments: list[str], option: str | None) -> None:
    result = run(*arguments)
    assert result.code == ExitCode.USAGE
    assert (f"{option} is given more than once. See: " in result.err) == (option is not None)
