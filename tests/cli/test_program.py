"""The program as a whole: its start, its help, a real terminal, and that docs/cli.md says the same."""

import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

from finetune_queue import __version__
from finetune_queue.cli import options, output
from finetune_queue.cli.app import app
from finetune_queue.cli.output import ExitCode
from finetune_queue.contract import DEFAULT_ACCOUNT, JobState, WaitReason
from finetune_queue.contract.job import Weights
from support.cli import Run, Worker
from support.samples import sample

FINETUNE = [sys.executable, "-c", "import sys; from finetune_queue.cli import main; sys.exit(main())"]
DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
HEAVY = ("celery", "kombu", "redis", "PIL", "fsspec", "starlette", "requests", "pydantic_settings")


def commands() -> list[str]:
    """Every command as it is typed."""
    tree = typer.main.get_command(app)
    found = []
    for name, command in tree.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found += [f"{name} {each}" for each in inner] if inner else [name]
    return found


def test_the_account_of_commands_is_that_of_requests() -> None:
    assert options.DEFAULT_ACCOUNT == DEFAULT_ACCOUNT


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from finetune_queue.cli import main; main(['--help']); "
        f"sys.exit(', '.join(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() == ""


def test_version(run: Run) -> None:
    assert run("--version").out == f"finetune-queue {__version__}\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="completes in bash")
def test_a_shell_completes_a_command_that_is_called_by_its_path(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "finetune"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom finetune_queue.cli import main\nsys.exit(main())\n")
    program.chmod(0o755)
    script = (
        'eval "$(bin/finetune --show-completion)"; complete -p finetune; cd /; '
        f'COMP_WORDS=({program} do) COMP_CWORD=1; _finetune_completion {program}; echo "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [
        "complete -o default -F _finetune_completion finetune",
        "download doctor",
    ]


def test_no_command_is_the_help(run: Run) -> None:
    result = run()
    assert result.code == ExitCode.OK
    assert "Usage: finetune" in result.out


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_is_full_is_no_defect(worker: Worker, unbuffered: str) -> None:
    worker.accept()
    command, env = [*FINETUNE, "list", "--json"], {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, env=env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == ExitCode.FAILED
    assert json.loads(done.stderr)["error"]["message"] == "Nothing more can be written: No space left on device."


@pytest.mark.parametrize(
    ("closed", "command", "code"),
    [
        ("<&-", "submit --file -", ExitCode.USAGE),
        ("<&-", "submit --file - --jsonl", ExitCode.USAGE),
        (">&-", "list --json", ExitCode.OK),
        ("2>&-", "list", ExitCode.OK),
        ("2>&-", "status nothing --json", ExitCode.NOT_FOUND),
        ("<&- >&- 2>&-", "status nothing", ExitCode.NOT_FOUND),
    ],
)
def test_a_stream_that_the_caller_closed_is_no_defect(worker: Worker, closed: str, command: str, code: int) -> None:
    worker.accept()
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *FINETUNE, *command.split()]
    assert subprocess.run(shell, timeout=60, check=False, capture_output=True).returncode == code


@pytest.mark.parametrize(("encoding", "name"), [("latin-1", "é\\u65e5"), ("ascii", "\\xe9\\u65e5"), ("utf-8", "é日")])
def test_what_the_encoding_of_the_output_has_not_is_escaped(worker: Worker, encoding: str, name: str) -> None:
    job = worker.accept(name="é日")
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    listed = subprocess.run([*FINETUNE, "list"], env=env, capture_output=True, timeout=60, check=True)
    assert f"{job.id}  accepted" in listed.stdout.decode(encoding)
    assert f"  {name}" in listed.stdout.decode(encoding)
    odd = subprocess.run([*FINETUNE, "status", "é日"], env=env, capture_output=True, timeout=60, check=False)
    assert odd.returncode == ExitCode.NOT_FOUND
    assert name in odd.stderr.decode(encoding)


def test_it_runs_where_the_current_folder_was_removed(
    run: Run, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(sys, "argv", ["/opt/venv/bin/finetune"])
    monkeypatch.setenv("PATH", "")  # so it is called by its path, seen from the current folder
    job = worker.bring(worker.accept(), JobState.SUCCEEDED)
    assert run("status", job.id).code == ExitCode.OK
    assert "See: /opt/venv/bin/finetune --help" in run("nonsense").err
    found = run("doctor")
    assert "The current folder was removed." in found.out
    assert "Traceback" not in found.err


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help(run: Run, command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.code == ExitCode.OK
    assert "usage: " in result.out.lower()
    assert "<bool>" not in result.out  # of a flag, as if a value followed


def test_the_help_has_every_exit_code(run: Run) -> None:
    listed = " ".join(run("--help").out.split()).partition("Exit codes:")[2]
    assert [code for code in ExitCode if f" {code:d} " not in listed] == []


def test_the_docs_have_every_command() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert [command for command in commands() if f"finetune {command}" not in text] == []


def test_the_docs_have_every_exit_code() -> None:
    rows = re.findall(r"^\| (\d+) \|", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [int(row) for row in rows] == [int(code) for code in ExitCode]


def test_the_docs_have_every_code_of_an_error_beside_its_exit_code() -> None:
    rows = dict(re.findall(r"^\| (\d+) \|.*\|(.*)\|$", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE))
    source = "\n".join(file.read_text(encoding="utf-8") for file in Path(output.__file__).parent.glob("*.py"))
    made = re.findall(r'ExitCode\.([A-Z_]+), "(\w+)"', source)
    assert len(made) > 20
    assert [code for name, code in made if f"`{code}`" not in rows[f"{ExitCode[name]:d}"]] == []


def test_the_docs_have_every_option() -> None:
    text = DOCS.read_text(encoding="utf-8")
    tree = typer.main.get_command(app)
    options = {
        option
        for command in [tree, *tree.commands.values()]  # type: ignore[attr-defined]
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and option not in {"--help"}
    }
    assert sorted(option for option in options if option not in text) == []


def test_the_sandbox_gets_its_own_options(run: Run) -> None:
    assert "--training-seconds" in run("sandbox", "--help").out
    assert run("sandbox", "--no-such-option").code == ExitCode.USAGE
    assert run("sandbox", "--rate-limit", "many").code == ExitCode.USAGE


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, master: int, process: "subprocess.Popen[bytes]") -> None:
        self._master = master
        self.process = process
        self.shown = ""

    def expect(self, text: str, *, seconds: float = 20) -> None:
        """Read until ``text`` was shown."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            if select.select([self._master], [], [], 0.1)[0]:
                self.shown += os.read(self._master, 65_536).decode(errors="replace")

    def end(self) -> int:
        """Read what is left and return the exit code."""
        code = self.process.wait(timeout=20)
        while select.select([self._master], [], [], 0)[0]:
            try:
                self.shown += os.read(self._master, 65_536).decode(errors="replace")
            except OSError:  # Linux says so when the other end is closed
                break
        return code


@contextmanager
def terminal(*arguments: str, columns: int = 80) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"}
    process = subprocess.Popen([*FINETUNE, *arguments], stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)


SHOW_CURSOR = "\x1b[?25h"


def test_a_job_on_a_terminal_is_drawn_until_it_ends(worker: Worker) -> None:
    job = worker.accept()
    with terminal("watch", job.id) as screen:
        screen.expect("accepted")
        job = worker.bring(job, JobState.TRAINING)
        screen.expect("Segmind: REQUESTED")
        worker.bring(job, JobState.SUCCEEDED)
        screen.expect("took")
        assert screen.end() == ExitCode.OK
    assert "✓" in screen.shown
    assert "ab" * 32 in screen.shown
    assert SHOW_CURSOR in screen.shown


def test_what_is_copied_from_a_terminal_is_in_one_piece_and_a_sentence_is_wrapped(worker: Worker) -> None:
    done = worker.bring(worker.accept(), JobState.SUCCEEDED)
    with terminal("status", done.id, columns=40) as screen:
        assert screen.end() == ExitCode.OK
    assert "/srv/weights/job/weights.safetensors\r\n" in screen.shown
    failed = worker.fail(worker.bring(worker.accept(), JobState.DOWNLOADING), message="word " * 20)
    with terminal("status", failed.id, columns=40) as screen:
        assert screen.end() == ExitCode.OK
    assert f"retry {failed.id}\r\n" in screen.shown
    assert "\r\n            word word" in screen.shown


def test_ctrl_c_on_a_terminal_gives_the_cursor_back(worker: Worker) -> None:
    worker.accept(name="watched-job")
    with terminal("watch") as screen:
        screen.expect("watched-job")
        screen.process.send_signal(signal.SIGINT)
        assert screen.end() == ExitCode.INTERRUPTED
    assert SHOW_CURSOR in screen.shown
    assert "Traceback" not in screen.shown


def test_a_batch_on_a_terminal_shows_how_far_it_is(worker: Worker, tmp_path: Path) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_text("\n".join([json.dumps(sample(name="a")), "no", json.dumps(sample(name="b"))]))
    with terminal("submit", "--file", str(file)) as screen:
        assert screen.end() == ExitCode.FAILED
    for text in ("line 2: ", "2 jobs, 1 refused", "100%", "2 new jobs on the queue.", SHOW_CURSOR):
        assert text in screen.shown


def test_ctrl_c_in_a_batch_says_how_to_go_on(worker: Worker, tmp_path: Path) -> None:
    pipe = tmp_path / "endless.jsonl"
    os.mkfifo(pipe)
    holder = os.open(pipe, os.O_RDWR)
    try:
        with terminal("submit", "--file", str(pipe)) as screen:
            os.write(holder, b"no\n")
            screen.expect("line 1: ")
            screen.process.send_signal(signal.SIGINT)
            assert screen.end() == ExitCode.INTERRUPTED
    finally:
        os.close(holder)
    assert "Run the same command again" in screen.shown
    assert SHOW_CURSOR in screen.shown
    assert "Traceback" not in screen.shown


WAITS = "waiting for an API call within the rate limit"


def waiting_jobs(worker: Worker) -> list[str]:
    """Two jobs that wait for a call, the newest first."""
    worker.announce()
    jobs = [worker.bring(worker.accept(name=f"{number} " + "long name " * 12), JobState.UPLOADING) for number in (1, 2)]
    for number, job in enumerate(jobs):
        worker.park(job, WaitReason.API_SLOT, score=float(number))
    return [job.id for job in reversed(jobs)]


@pytest.mark.parametrize(
    ("columns", "name"), [(60, ""), (80, "2 long name"), (120, "2 long name long name long name"), (160, "2 long name")]
)
def test_a_table_that_fits_the_terminal_says_where_each_job_is_and_why_it_waits(
    worker: Worker, columns: int, name: str
) -> None:
    newest, oldest = waiting_jobs(worker)
    with terminal("list", columns=columns) as screen:
        assert screen.end() == ExitCode.OK
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in screen.shown.splitlines()]
    assert max(map(len, lines)) <= columns
    if columns < 150:
        lines = [lines[0], *map(" ".join, zip(lines[1::2], lines[2::2], strict=True))]
    assert len(lines) == 3
    for line, job_id in zip(lines[1:], (newest, oldest), strict=True):
        assert line.startswith(f"{job_id}  uploading  ")
        assert f"  {WAITS}" in line
    assert f"  {name}" in lines[1]
    assert ("NAME" in lines[0]) == bool(name)


def test_watch_says_at_80_columns_why_a_job_waits(worker: Worker) -> None:
    waiting_jobs(worker)
    with terminal("watch") as screen:
        screen.expect(WAITS)
        screen.process.send_signal(signal.SIGINT)
        assert screen.end() == ExitCode.INTERRUPTED


def test_a_download_on_a_terminal_shows_how_far_it_is(worker: Worker, tmp_path: Path) -> None:
    content = b"weights" * 1000
    (tmp_path / "stored").write_bytes(content)
    facts = Weights(
        url=(tmp_path / "stored").as_uri(),
        manifest_url="",
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        tensors=1,
    )
    job = worker.move(worker.bring(worker.accept(), JobState.DOWNLOADING), JobState.SUCCEEDED, weights=facts)
    with terminal("download", job.id) as screen:
        assert screen.end() == ExitCode.OK
    for text in ("7.0/7.0 kB", f"are in {job.id}.safetensors.", SHOW_CURSOR):
        assert text in screen.shown


def test_json_on_a_terminal_is_indented(worker: Worker) -> None:
    worker.accept()
    with terminal("list", "--json") as screen:
        assert screen.end() == ExitCode.OK
    assert screen.shown.startswith("[\r\n  {")
