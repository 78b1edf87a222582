"""Children are watched by their output, ended with certainty, and never outlive their parent."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_queue.local.processes import Child, ProcessError
from support.until import until

ENV = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}

PATIENT = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("leaving"), sys.exit(3)))
print("ready")
time.sleep(60)
"""
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("ready", child.pid)
time.sleep(60)
"""


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Callable[[str], Child]]:
    children: list[Child] = []

    def start(code: str) -> Child:
        child = Child("script", [sys.executable, "-c", code], env=ENV, cwd=tmp_path, log=tmp_path / "script.log")
        children.append(child)
        return child.start()

    yield start
    for child in children:
        child.kill()


def _gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody has reaped yet counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_ready_line_is_found_also_when_it_was_printed_before_the_question(python: Callable[[str], Child]) -> None:
    child = python(PATIENT)
    assert child.wait_for_line(lambda line: line == "ready", timeout=60) == "ready"
    assert child.wait_for_line(lambda line: line == "ready", timeout=0) == "ready"
    assert child.running
    assert child.returncode is None


def test_a_line_printed_just_before_the_end_still_counts(python: Callable[[str], Child]) -> None:
    child = python("print('ready')")
    assert child.wait_for_line(lambda line: line == "ready", timeout=60)
    assert child.wait(timeout=60) == 0


def test_a_child_that_ends_first_is_an_error_with_its_last_words(python: Callable[[str], Child]) -> None:
    child = python("import sys; print('no such bucket', file=sys.stderr); sys.exit(7)")
    with pytest.raises(ProcessError, match=r"script ended with exit code 7[\s\S]*no such bucket"):
        child.wait_for_line(lambda line: line == "ready", timeout=60)


def test_a_child_that_is_not_ready_in_time_is_an_error(python: Callable[[str], Child]) -> None:
    with pytest.raises(ProcessError, match=r"script was not ready after 0\.1 s"):
        python(PATIENT).wait_until(lambda: False, timeout=0.1)
    with pytest.raises(ProcessError, match=r"still runs after 0\.1 s"):
        python(PATIENT).wait(timeout=0.1)


def test_stop_lets_a_child_leave_in_its_own_way(python: Callable[[str], Child]) -> None:
    child = python(PATIENT)
    child.wait_for_line(lambda line: line == "ready", timeout=60)
    child.stop()
    assert child.returncode == 3
    assert child.lines()[-1] == "leaving"
    child.stop()
    child.kill()
    child.send_signal(signal.SIGTERM)


def test_stop_insists_and_takes_the_grandchildren_along(python: Callable[[str], Child]) -> None:
    child = python(STUBBORN)
    grandchild = int(child.wait_for_line(lambda line: line.startswith("ready"), timeout=60).split()[1])
    child.stop(grace=0.1)
    assert child.returncode == -signal.SIGKILL
    until(lambda: _gone(grandchild), seconds=10)


def test_grandchildren_left_behind_by_a_crash_are_ended_too(python: Callable[[str], Child]) -> None:
    child = python(STUBBORN)
    grandchild = int(child.wait_for_line(lambda line: line.startswith("ready"), timeout=60).split()[1])
    child.send_signal(signal.SIGKILL)
    assert child.wait(timeout=60) == -signal.SIGKILL
    until(lambda: _gone(grandchild), seconds=10)


def test_a_process_of_somebody_else_is_left_alone(python: Callable[[str], Child]) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        child = python(PATIENT)
        child.wait_for_line(lambda line: line == "ready", timeout=60)
        child.kill()
        assert other.poll() is None
        other.kill()


def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    child = Child("Flower", ["no-such-program"], env=ENV, cwd=tmp_path, log=tmp_path / "log")
    with pytest.raises(ProcessError, match="Flower cannot be started: no-such-program is not there"):
        child.start()
    assert not child.running


def test_a_started_child_cannot_be_started_twice_but_again_after_its_end(python: Callable[[str], Child]) -> None:
    child = python("print('one life')")
    child.wait(timeout=60)
    child.start()
    assert child.wait_for_line(lambda line: line == "one life", timeout=60)
    child.wait(timeout=60)
    assert child.lines() == ["one life"], "lines of the first life do not count"
    other = python(PATIENT)
    with pytest.raises(RuntimeError, match="already running"):
        other.start()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no parent-death signal")
def test_children_die_with_a_parent_that_is_killed(python: Callable[[str], Child], tmp_path: Path) -> None:
    parent = python(f"""
import sys, time
from pathlib import Path
from finetune_queue.local.processes import Child
command = [sys.executable, "-c", "import time; time.sleep(60)"]
child = Child("inner", command, env={ENV!r}, cwd=Path("."), log=Path("inner.log"))
print("inner", child.start().pid)
time.sleep(60)
""")
    inner = int(parent.wait_for_line(lambda line: line.startswith("inner"), timeout=60).split()[1])
    # The command runs, not the leash before it: only then is the leash certainly on.
    parent.wait_until(lambda: b"leash" not in Path(f"/proc/{inner}/cmdline").read_bytes(), timeout=60)
    parent.send_signal(signal.SIGKILL)
    until(lambda: _gone(inner), seconds=10)
