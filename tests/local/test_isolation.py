"""What tests/conftest.py promises every test."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import redis

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("address", [("192.0.2.1", 9), ("example.com", 80), ("0.0.0.0", 9), ("127.0.0.1.nip.io", 80)])
def test_other_machines_are_out_of_reach(address: tuple[str, int]) -> None:
    with socket.socket() as probe:
        probe.settimeout(5)
        with pytest.raises(pytest.fail.Exception, match="stay on loopback"):
            probe.connect(address)
        with pytest.raises(pytest.fail.Exception, match="stay on loopback"):
            probe.connect_ex(address)


def test_loopback_and_socket_files_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
        pass
    monkeypatch.chdir(tmp_path)  # a socket file's path has to be short
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("socket")
        server.listen()
        client.connect("socket")


def test_the_database_is_empty_at_the_start_of_each_test(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, socket_timeout=5) as client:
        assert client.dbsize() == 0
        client.set("left", "over")


test_also_after_another_one = test_the_database_is_empty_at_the_start_of_each_test


def test_no_setting_comes_in_from_outside(tmp_path: Path) -> None:
    (tmp_path / "test_inner.py").write_text(
        "import os\n"
        "from pathlib import Path\n"
        "def test_inner() -> None:\n"
        "    assert not [name for name in os.environ if name.upper().startswith(('FINETUNE_', 'SEGMIND_'))]\n"
        "    assert not Path('.env').exists()\n"
    )
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / ".env").write_text("SEGMIND_API_KEY=SG_real_account\n")
    env = {**os.environ, "SEGMIND_API_KEY": "SG_real_account", "finetune_redis_url": "redis://real/0"}
    env["PYTHONPATH"] = str(ROOT / "tests")  # for what the conftest imports
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis", "test_inner.py"]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout
