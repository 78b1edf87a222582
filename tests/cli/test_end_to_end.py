"""The command line on the whole system: a worker, the sandbox and Valkey as processes."""

import hashlib
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import pytest

from finetune_queue.cli import demo
from finetune_queue.cli.output import ExitCode
from finetune_queue.local.stack import LocalStack
from finetune_queue.messaging import TRANSFER_QUEUE, producer_app
from finetune_queue.store import Workers, connect
from segmind_sandbox.testing import SandboxControl
from support.cli import Program, Run, checks
from support.images import make_dataset_folder
from support.until import until


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    settings = {
        "FINETUNE_POLL_MIN_INTERVAL": "0.2",
        "FINETUNE_BACKOFF_BASE": "0.1",
        "FINETUNE_BACKOFF_MAX": "0.2",
        "FINETUNE_MAX_ATTEMPTS": "1",
    }
    sandbox = {"SANDBOX_TRAINING_SECONDS": "0.5", "SANDBOX_WEIGHTS_BYTES": "262144"}
    folder = tmp_path_factory.mktemp("cli-stack")
    with LocalStack(folder, rate_limit="50/1", sandbox=sandbox, settings=settings) as running:
        yield running


@pytest.fixture
def submit(stack: LocalStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, ...]:
    """The arguments that submit a local folder to the stack."""
    for name in ("FINETUNE_REDIS_URL", "FINETUNE_STAGING_URL", "FINETUNE_ARTIFACT_URL"):
        monkeypatch.setenv(name, stack.settings_env[name])
    folder = make_dataset_folder(tmp_path / "images")
    return ("submit", "-d", folder, "-n", "e2e", "-p", "photo of 1MAN", "-t", "1MAN")


def test_from_a_folder_to_verified_weights(run: Run, submit: tuple[Any, ...]) -> None:
    result = run(*submit, "--wait", "--timeout", 60)
    assert result.code == ExitCode.OK
    assert "\ne2e: succeeded\n" in result.out
    job = run("list", "--json", "--limit", 1).json[0]
    assert f"  sha256    {job['weights']['sha256']}\n" in result.out
    path = Path(job["weights"]["url"].removeprefix("file://"))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == job["weights"]["sha256"]


def test_a_failed_job_is_exit_code_1_and_can_be_resumed(
    run: Run, submit: tuple[Any, ...], control: SandboxControl
) -> None:
    control.add_fault(op="download", kind="corrupted")
    failed = run(*submit, "--wait", "--timeout", 60, "--json")
    assert (failed.code, failed.json["state"]) == (ExitCode.FAILED, "failed")
    job_id = failed.json["job_id"]
    assert run("retry", job_id).code == ExitCode.OK
    assert run("watch", job_id, "--timeout", 60).code == ExitCode.OK
    assert control.report()["submits"]["total"] == 1


def test_the_doctor_finds_everything_well(
    run: Run, stack: LocalStack, submit: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    del submit  # its variables
    monkeypatch.setenv("SEGMIND_BASE_URL", stack.sandbox_url)
    monkeypatch.setattr("finetune_queue.cli.doctor.PING_SECONDS", 0.5)
    found: dict[str, Any] = {}

    def well() -> bool:
        found.clear()
        found.update({check["name"]: check for check in run("doctor", "--json").json["checks"]})
        return {check["status"] for check in found.values()} == {"ok"}

    until(well, seconds=30)
    assert found["workers"]["message"].startswith("1 alive: worker1@")
    with connect(stack.valkey.url) as client:
        [worker] = Workers(client).alive()
    assert found["workers"]["message"] == f"1 alive: {worker.shown}"
    assert re.match(r"\d of 50 calls per 1 s", found["account default"]["message"])
    assert stack.valkey.url in found["redis"]["message"]


def test_the_doctor_misses_the_workers_of_one_queue(
    run: Run, stack: LocalStack, submit: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when no pod of transfers gets its volume."""
    del submit  # its variables
    monkeypatch.setattr("finetune_queue.cli.doctor.PING_SECONDS", 0.5)

    found: dict[str, str] = {}

    def says(status: str, end: str = "") -> bool:
        found.update(checks(run("doctor", "--json"))["workers"])
        return found["status"] == status and found["message"].endswith(end)

    until(lambda: says("ok"), seconds=30)
    with producer_app(stack.settings) as app:
        try:
            app.control.cancel_consumer(TRANSFER_QUEUE, reply=True)
            # A worker that is late with its answer fails it as well.
            until(lambda: says("fail", "none takes from the queue finetune.transfer"), seconds=30)
            told = dict(found)
        finally:
            app.control.add_consumer(TRANSFER_QUEUE, reply=True)
    assert re.fullmatch(r"1 alive: worker1@\S+, and none takes from the queue finetune\.transfer", told["message"])
    assert "celery -A finetune_worker worker -Q finetune.transfer" in told["action"]
    until(lambda: says("ok"), seconds=30)


def _leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith("finetune-demo-")]


def _processes_in(folder: Path) -> list[str]:
    """The processes whose folder lies below ``folder``."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder) in str((process / "cwd").readlink()):
                found.append((process / "cmdline").read_text())
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_the_demo_ends_in_weights_that_stay(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr(demo, "TRAINING_SECONDS", 0.5)
    monkeypatch.setattr(tempfile, "tempdir", str(work))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # which is not to be asked about this machine
    result = run("demo", "--output", work / "results", "--json")
    assert result.code == ExitCode.OK, result.err
    found = result.json
    assert found["job"]["state"] == "succeeded"
    assert found["event"]["type"] == "io.finetunequeue.job.succeeded.v1"
    assert found["api_calls"]["submit"] == 1
    weights = found["job"]["weights"]
    path = Path(weights["url"].removeprefix("file://"))
    assert path.is_relative_to(work / "results")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == weights["sha256"]
    manifest = json.loads(Path(weights["manifest_url"].removeprefix("file://")).read_text(encoding="utf-8"))
    assert manifest["dataset"]["images"] == 8
    assert manifest["dataset"]["findings"] == []
    assert found["folder"] is None
    assert _leftovers(work) == []


@needs_proc
def test_the_demo_as_text_and_ctrl_c_in_the_middle(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with Program("demo", "--output", work / "results", TMPDIR=str(work)) as running:
        running.expect("Segmind: ", seconds=60)
        assert _processes_in(work)
        running.interrupt()
        result = running.end(seconds=30)
    assert result.code == ExitCode.INTERRUPTED
    assert result.err == "stopped: Everything that the demo started has ended.\n"
    assert _processes_in(work) == []
    assert _leftovers(work) == []


class _Dying(LocalStack):
    """Its worker does not live to see the job."""

    def __enter__(self) -> Self:
        super().__enter__()
        self.workers[0].kill()
        return self


def test_a_part_that_dies_ends_the_demo_with_its_log(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "LocalStack", _Dying)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    started = time.monotonic()
    result = run("demo", "--output", tmp_path / "results")
    assert time.monotonic() - started < demo.JOB_TIMEOUT / 2
    assert result.code == ExitCode.UNAVAILABLE
    [kept] = _leftovers(tmp_path)
    assert "error: worker1 ended with exit code -9. Its last output" in result.err
    assert f"Logs and data are in {tmp_path / kept}" in result.err
    assert (tmp_path / kept / "worker1.log").exists()


def test_the_demo_without_a_temporary_folder_is_no_defect(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    result = run("demo", "--output", tmp_path / "results", "--json")
    assert (result.code, result.error["code"]) == (ExitCode.UNAVAILABLE, "local_system")
    assert "There is no temporary folder for its logs and data: No such file" in result.error["message"]
    assert "TMPDIR" in result.error["message"]


def test_the_demo_needs_the_extras(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_NEEDED", ("json", "no_such_package"))
    result = run("demo", "--json")
    assert result.code == ExitCode.MISSING
    assert result.error["message"] == "The demo needs no_such_package: pip install 'finetune-queue[worker,sandbox]'"


def test_the_demo_cannot_write_its_results(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("demo", "--output", tmp_path / "file" / "inside")
    assert result.code == ExitCode.USAGE
    assert "Name another with --output." in result.err


def test_the_sandbox_runs_until_ctrl_c() -> None:
    with Program("sandbox", "--training-seconds", "1") as running:
        ready = json.loads(running.expect("base_url"))
        with closing(SandboxControl(ready["base_url"])) as control:
            assert control.report()["submits"]["total"] == 0
        running.interrupt()
        assert running.end().code == ExitCode.OK
