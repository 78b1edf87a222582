"""Child processes: to start, watch and reliably end them, and no others."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

_LEASH = Path(__file__).with_name("leash.py")
_TICK = 0.02
_TAIL_BYTES = 4_000


class ProcessError(RuntimeError):
    """A child did not start, or ended before it was ready. The message ends in its last lines of output."""


class Child:
    """One process in a session of its own, with its output in a log file.

    On Linux it is killed when this process ends, however that ends; more exactly when the thread that called `start`
    ends, so that thread has to live as long as the child is needed.

    Args:
        name: What messages call it.
        command: Program and arguments; no shell.
        env: Its whole environment.
        cwd: The folder it runs in.
        log: The file that its stdout and stderr are appended to.
    """

    def __init__(self, name: str, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._env = dict(env)
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0  # where in the log its output since `start` begins
        self._told = 0  # where in the log that begins which `new_lines` has not returned
        self._swept = False  # whether the rest of its group was killed after its end

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._started.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for the signal that ended it; None while it runs."""
        process = self._started
        code = process.poll()
        if code is not None and not self._swept:
            # Its own children are killed at once: later its id, which is also the group's, may be another process's.
            self._swept = True
            self._kill_group(process.pid)
        return code

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self.returncode is None

    def start(self) -> Self:
        """Start the process.

        Raises:
            ProcessError: The program cannot be run.
        """
        if self.running:
            raise RuntimeError(f"{self.name} is already running")
        if shutil.which(self._command[0], path=self._env.get("PATH")) is None:
            raise ProcessError(f"{self.name} cannot be started: {self._command[0]} is not there")
        with self.log.open("ab") as log:
            self._log_start = self._told = log.tell()
            self._swept = False
            self._process = subprocess.Popen(  # noqa: S603 - a fixed argument list, no shell
                [sys.executable, "-I", "-S", str(_LEASH), str(os.getpid()), *self._command],
                env=self._env,
                cwd=self._cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the supervisor only, which ends things in order
            )
        return self

    def lines(self) -> list[str]:
        """What it has printed since `start`, whole lines only while it runs."""
        text = self._output()
        return (text if not self.running else text[: text.rfind("\n") + 1]).splitlines()

    def new_lines(self) -> list[str]:
        """The whole lines it has printed since the last call of this method, or since `start`."""
        with self.log.open("rb") as log:
            log.seek(self._told)
            whole = log.read().rpartition(b"\n")[0]
        if not whole:
            return []
        self._told += len(whole) + 1
        return whole.decode(errors="replace").split("\n")

    def wait_for_line(self, wanted: Callable[[str], bool], *, timeout: float) -> str:
        """Return the first line of output that is wanted.

        Args:
            wanted: Says whether a line is the one.
            timeout: Seconds.

        Raises:
            ProcessError: The process ended or the time passed without such a line.
        """
        found: list[str] = []

        def look() -> bool:
            found.extend(line for line in self.lines() if wanted(line))
            return bool(found)

        self.wait_until(look, timeout=timeout)
        return found[0]

    def wait_until(self, condition: Callable[[], bool], *, timeout: float) -> None:
        """Wait until `condition` is true.

        Args:
            condition: Asked again and again; has to answer quickly.
            timeout: Seconds.

        Raises:
            ProcessError: The process ended or the time passed first.
        """
        deadline = time.monotonic() + timeout
        while True:
            code = self.returncode  # before the question: the answer may lie in what it printed last
            if condition():
                return
            if code is not None:
                raise self.failure(f"ended with exit code {code}")
            if time.monotonic() > deadline:
                raise self.failure(f"was not ready after {timeout:g} s")
            time.sleep(_TICK)

    def wait(self, *, timeout: float) -> int:
        """Wait for the process to end by itself and return its exit code.

        Raises:
            ProcessError: It still runs after `timeout` seconds.
        """
        code = self._wait(timeout)
        if code is None:
            raise self.failure(f"still runs after {timeout:g} s")
        return code

    def failure(self, what: str) -> ProcessError:
        """Return an error that says what the process did, with its last lines of output."""
        lines = self._output()[-_TAIL_BYTES:].splitlines()[-20:]
        tail = "\n".join(f"  {line}" for line in lines or ["(nothing)"])
        return ProcessError(f"{self.name} {what}. Its last output ({self.log}):\n{tail}")

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, not to its children; nothing if it has ended."""
        if self.running:
            os.kill(self.pid, number)

    def stop(self, *, grace: float = 10.0) -> None:
        """End it: SIGTERM, then SIGKILL after `grace` seconds. Nothing happens if it is not running."""
        self.send_signal(signal.SIGTERM)
        if self.running and self._wait(grace) is None:
            self.kill()

    def kill(self) -> None:
        """End it and its children at once with SIGKILL. Nothing happens if it is not running."""
        if self.running:
            self._kill_group(self.pid)
            self._started.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process

    def _wait(self, timeout: float) -> int | None:
        deadline = time.monotonic() + timeout
        while (code := self.returncode) is None and time.monotonic() < deadline:
            time.sleep(_TICK)
        return code

    @staticmethod
    def _kill_group(leader: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # the group is empty; macOS says it the second way
            os.killpg(leader, signal.SIGKILL)

    def _output(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")
