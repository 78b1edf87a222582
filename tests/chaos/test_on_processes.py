"""Blows against workers: what they should survive, and how they should end, is noted where they do not."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_queue.local.processes import Child
from finetune_queue.store import RedisError
from support.until import until

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[Child]:
    """A worker that does not end when it is told to."""
    with Child("worker1", [sys.executable, "-c", DEAF], env={}, cwd=tmp_path, log=tmp_path / "worker1.log") as child:
        child.wait_for_line(lambda line: line == "up", timeout=20)
        yield child
        child.kill()


def test_a_worker_that_does_not_end_when_told_to_is_noted_and_replaced(
    deaf: Child, chaos: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chaos.on_processes, "LONGEST_END", 0.2)
    started: list[str] = []
    ground: Any = SimpleNamespace(
        workers=[deaf], children=[deaf], valkey=SimpleNamespace(process=None), launch_worker=started.append
    )
    workers = chaos.on_processes.Workers(ground, chaos.agenda.Agenda())
    workers.keep()
    assert workers.acts["worker SIGTERM"]({"pick": 0})

    def noted() -> bool:
        workers.keep()
        return bool(workers.ended)

    until(noted, seconds=20)
    assert list(workers.ended.values()) == ["worker1 still ran 0.2 s after it was told to end"]
    assert started == ["worker2"]
    assert deaf.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["worker SIGKILL", "worker SIGTERM", "worker SIGSTOP", "workers SIGKILL, all"])
def test_a_blow_that_hits_no_worker_is_none(chaos: SimpleNamespace, kind: str) -> None:
    workers = chaos.on_processes.Workers(SimpleNamespace(workers=[], children=[]), chaos.agenda.Agenda())
    assert workers.acts[kind]({"pick": 0, "seconds": 1}) is False


class FakeValkey:
    """A server that can be started if it does not run, and a client of it whose first command fails."""

    def __init__(self) -> None:
        self.running = True
        self.process = self
        self.commands = 0

    def kill(self) -> None:
        self.running = False

    stop = kill

    def start(self) -> None:
        assert not self.running
        self.running = True

    def config_set(self, *_: object) -> None:
        self.commands += 1
        if self.commands == 1:
            raise RedisError


def test_a_server_that_was_started_but_not_set_is_not_started_again(chaos: SimpleNamespace) -> None:
    valkey, agenda = FakeValkey(), chaos.agenda.Agenda()
    ground = SimpleNamespace(valkey=valkey, children=[SimpleNamespace(name="sandbox")])
    servers = chaos.on_processes.Servers(ground, agenda, valkey)
    assert servers.acts["valkey killed"]({"seconds": 0})

    def attempt(_: str, blow: Callable[[], bool]) -> bool:
        try:
            return blow()
        except RedisError:
            return False

    def over() -> bool:
        agenda.strike(attempt)
        return valkey.commands == 2

    until(over, seconds=30)
    assert valkey.running
