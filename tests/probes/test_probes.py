"""A worker's probes, asked of real workers over HTTP."""

import json
import os
import signal
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery.exceptions import WorkerShutdown
from structlog.testing import capture_logs

from finetune_queue.local.processes import Child
from finetune_queue.local.valkey import ValkeyServer, free_port
from finetune_queue.messaging import QUEUE, RUN, Messenger, producer_app
from finetune_queue.settings import Settings, load_settings
from finetune_queue.store import Workers, connect
from finetune_worker.celery import create_app
from finetune_worker.container import Container
from finetune_worker.probes import Probes, ProbeServer, ProbeStep
from finetune_worker.pulse import Loop, Pulse
from finetune_worker.stopping import STUCK_AFTER
from support.until import until

SECONDS = 60
KEY = "SG_0123456789abcdef"
THREADS = 4


class OddWorker:
    """A real worker whose loops can be made to stand still, and a broker that is its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.valkey = ValkeyServer(folder / "valkey", port=free_port())
        self.port = free_port()
        self.env = {
            "FINETUNE_REDIS_URL": self.valkey.url,
            "FINETUNE_SECRETS_DIR": str(folder),
            "FINETUNE_PROBE_PORT": str(self.port),
            "FINETUNE_SHUTDOWN_TIMEOUT": "2",
            "SEGMIND_API_KEY": KEY,
        }
        command = [sys.executable, "-m", "celery", "-A", "support.odd_worker", "worker", "-c", str(THREADS)]
        self.process = Child(
            "worker",
            command,
            env={
                **os.environ,
                **self.env,
                "TMPDIR": str(folder),
                "PYTHONPATH": os.pathsep.join(sys.path),
                "PYTHONWARNINGS": "ignore:You're running the worker",
            },
            cwd=folder,
            log=folder / "worker.log",
        )

    def start_afresh(self) -> None:
        """Start it once more, with nothing left of what it had in hand: a message that made it stand still may have
        been put back."""
        self.process.kill()
        with redis.Redis.from_url(self.valkey.url) as client:
            client.flushall()
        self.process.start()
        until(self.is_up, seconds=SECONDS)

    def begin(self, task: str, *args: str) -> None:
        """Send a task and return when it runs. Redis may hand a message to a connection that it does not know to be
        lost yet, so it is sent again after a while."""
        began = self.folder / uuid.uuid4().hex
        with producer_app(load_settings(self.env)) as app:
            while not began.exists():
                app.send_task(f"odd.{task}", args=[str(began), *args], queue=QUEUE)
                with suppress(AssertionError):
                    until(began.exists, seconds=5)

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def is_up(self) -> bool:
        """Return whether the worker is ready, also while it does not listen yet."""
        try:
            return self.is_ready()
        except OSError:
            return False

    def is_ready(self) -> bool:
        return self.get("/readyz")[0] == HTTPStatus.OK

    def stuck(self) -> set[str]:
        """Return the loops that /livez says stand still; what else it may say is checked on the way."""
        status, body = self.get("/livez")
        expected = HTTPStatus.OK if body["status"] == "ok" else HTTPStatus.SERVICE_UNAVAILABLE
        assert status == expected
        return set(body.get("seconds", {}))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OddWorker]:
    """One worker for all tests of this file; each leaves it worse off than the one before."""
    odd = OddWorker(tmp_path_factory.mktemp("odd"))
    with ExitStack() as stack:
        stack.enter_context(odd.valkey)
        odd.process.start()
        stack.callback(odd.process.kill)
        until(odd.is_up, seconds=SECONDS)
        yield odd


def test_without_redis_a_worker_lives_but_is_not_ready(worker: OddWorker) -> None:
    assert worker.get("/livez") == (200, {"status": "ok"})
    worker.valkey.kill()
    assert worker.get("/readyz") == (503, {"status": "not ready", "detail": "Redis does not answer"})
    until(lambda: "detail" in worker.get("/livez")[1], seconds=SECONDS)  # a loop is late, and excused
    assert worker.stuck() == set()
    worker.valkey.start()
    until(worker.is_ready, seconds=SECONDS)


def test_redis_that_takes_connections_and_is_silent_is_the_same(worker: OddWorker) -> None:
    worker.valkey.process.send_signal(signal.SIGSTOP)
    try:
        assert not worker.is_ready()
        until(lambda: "detail" in worker.get("/livez")[1], seconds=SECONDS)
    finally:
        worker.valkey.process.send_signal(signal.SIGCONT)
    until(worker.is_ready, seconds=SECONDS)
    assert worker.stuck() == set()


def test_loops_that_stand_still_are_named(worker: OddWorker, tmp_path: Path) -> None:
    stop_consumer = tmp_path / "stop_consumer"
    worker.begin("stop", str(stop_consumer), Loop.CONSUMER)  # it comes first: without FETCH nothing arrives
    named: set[str] = set()
    for loop in (Loop.DISPATCHER, Loop.NOTIFIER, Loop.FETCH):
        worker.begin("stop", os.devnull, loop)
        named.add(loop)
        until(lambda: worker.stuck() == named, seconds=SECONDS, pause=0.1)
        assert worker.is_ready() == (loop is not Loop.FETCH)
    stop_consumer.touch()
    until(lambda: worker.stuck() == set(Loop), seconds=SECONDS, pause=0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_worker_that_ends_is_not_ready_and_closes_the_port_while_its_stages_still_run(
    worker: OddWorker, tmp_path: Path, number: signal.Signals
) -> None:
    worker.start_afresh()
    until(lambda: is_alive(worker), seconds=SECONDS)
    release = tmp_path / "release"
    worker.begin("hold", str(release))
    worker.process.send_signal(number)
    until(lambda: not worker.is_up(), seconds=SECONDS, pause=0.01)
    with suppress(OSError):
        while True:
            assert worker.get("/readyz") == (503, {"status": "not ready", "detail": "the worker is stopping"})
    assert worker.process.running
    release.touch()  # nothing else is waited for
    assert worker.process.wait(timeout=SECONDS) == 0
    assert not is_alive(worker)
    # Its log begins and ends with an event, and has no banner.
    said = worker.process.lines()
    events = [json.loads(line)["event"] for line in said if line.startswith("{")]
    assert (events[0], events[-1]) == ("worker_started", "worker_stopped")
    assert not [line for line in said if "task events" in line]


def test_a_worker_that_was_started_with_nohup_outlives_its_terminal(worker: OddWorker) -> None:
    worker.process.kill()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        worker.process.start()
    finally:
        signal.signal(signal.SIGHUP, before)
    until(worker.is_up, seconds=SECONDS)
    worker.process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert worker.is_ready()


def is_alive(worker: OddWorker) -> bool:
    """Return whether the worker is said to be there."""
    with connect(worker.valkey.url) as client:
        return any(each.name.endswith(f":{worker.process.pid}") for each in Workers(client).alive())


def test_a_soft_shutdown_is_not_ready_and_loses_no_message(worker: OddWorker, tmp_path: Path) -> None:
    worker.start_afresh()
    release = tmp_path / "release"
    worker.begin("hold", str(release))
    worker.process.send_signal(signal.SIGQUIT)
    worker.process.wait_for_line(lambda line: "Initiating Soft Shutdown" in line, timeout=SECONDS)
    assert worker.get("/readyz") == (503, {"status": "not ready", "detail": "the worker is stopping"})
    assert worker.get("/livez") == (200, {"status": "ok"})
    with producer_app(load_settings(worker.env)) as app:
        app.send_task(RUN, args=[{"name": "late"}], queue=QUEUE)  # whose only trace, so far, is this message
        worker.process.wait_for_line(lambda line: "task_cancelled" in line, timeout=SECONDS)  # it runs all the same
        release.touch()
        worker.process.wait(timeout=SECONDS)
        assert Messenger(app).queued(QUEUE) == 1
    said = "".join(worker.process.lines())
    assert "Unrecoverable" not in said
    assert "Error in timer" not in said


def test_a_signal_that_comes_while_a_message_is_handed_to_a_thread_harms_neither(
    worker: OddWorker, tmp_path: Path
) -> None:
    worker.start_afresh()
    ran = tmp_path / "ran"
    with producer_app(load_settings(worker.env)) as app:
        app.send_task("odd.come_with_signal", args=[str(ran)], queue=QUEUE)
        worker.process.wait(timeout=SECONDS)
    assert ran.exists()
    said = "".join(worker.process.lines())
    assert "critical" not in said
    assert "Traceback" not in said


def test_a_worker_whose_event_loop_stands_still_can_be_ended(worker: OddWorker, tmp_path: Path) -> None:
    worker.start_afresh()
    at_once = tmp_path / "at_once"
    at_once.touch()
    worker.begin("stop", str(at_once), Loop.CONSUMER)
    until(lambda: Loop.CONSUMER in worker.stuck(), seconds=SECONDS)
    for _ in range(4):  # the first waits for the loop; of the others, Celery acts on each more harshly
        worker.process.send_signal(signal.SIGQUIT)
        with suppress(AssertionError):
            until(lambda: not worker.process.running, seconds=STUCK_AFTER + 0.2)
    worker.process.wait(timeout=SECONDS)


def test_a_signal_that_comes_while_the_broker_is_lost_ends_the_worker(worker: OddWorker) -> None:
    """The last of the worker's tests: its broker does not come back."""
    worker.start_afresh()
    with producer_app(load_settings(worker.env)) as app:
        app.send_task("odd.lose_broker", args=[worker.valkey.process.pid], queue=QUEUE)
    worker.process.wait(timeout=SECONDS)


def test_while_redis_was_away_nothing_counts(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "valkey", port=free_port()) as server:
        settings = Settings(finetune_redis_url=server.url, segmind_api_key=KEY)
        server.stop()
        container = Container.build(settings, producer_app(settings))
        container = replace(container, pulse=Pulse(dict.fromkeys(Loop, 0.5)))
        probes = Probes(container)
        until(lambda: len(container.pulse.stuck()) == len(Loop), seconds=SECONDS)
        assert probes.live() == (200, {"status": "ok", "detail": "Redis does not answer"})
        assert container.pulse.stuck() == {}  # they count from that answer on
        server.start()
        until(lambda: probes.live()[0] == HTTPStatus.SERVICE_UNAVAILABLE, seconds=SECONDS)
        probes.close()


def test_a_redis_that_refuses_the_password_is_not_said_to_be_silent(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "valkey") as server:
        settings = Settings(finetune_redis_url=server.url, segmind_api_key=KEY)
        probes = Probes(Container.build(settings, producer_app(settings)))
        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", "secret")
        status, body = probes.ready()
        probes.close()
    assert (status, body["detail"]) == (503, "Redis refuses: Authentication required.")


def test_a_port_that_is_taken_ends_the_worker(tmp_path: Path, redis_url: str) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        app = create_app(Settings(finetune_redis_url=redis_url, segmind_api_key=KEY, finetune_probe_port=port))
        parent = SimpleNamespace(app=app)
        with pytest.raises(WorkerShutdown), capture_logs() as logs:
            ProbeStep(parent).start(parent)
    assert [(entry["event"], entry["port"]) for entry in logs] == [("probe_port_not_free", port)]


def test_who_hangs_up_leaves_no_traceback_outside_the_log(
    redis_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(finetune_redis_url=redis_url, segmind_api_key=KEY)
    probes = Probes(Container.build(settings, producer_app(settings)))
    server = ProbeServer(0, probes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threads = set(threading.enumerate())

    def ask(path: bytes, *, hang_up: bool) -> None:
        with socket.create_connection(("127.0.0.1", server.server_address[1])) as client:
            if hang_up:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            else:
                client.sendall(b"GET " + path + b" HTTP/1.0\r\n\r\n")
                client.recv(1000)
        until(lambda: set(threading.enumerate()) <= threads, seconds=SECONDS)

    with capture_logs() as logs:
        ask(b"", hang_up=True)  # as a load balancer that looks for an open port
        assert logs == []
        monkeypatch.setattr(probes, "ready", lambda: 1 // 0)  # a defect
        ask(b"/readyz", hang_up=False)
    server.shutdown()
    server.server_close()
    probes.close()

    assert [entry["event"] for entry in logs] == ["probe_crashed"]
    assert "Traceback" not in capsys.readouterr().err
