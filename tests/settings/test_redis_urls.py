"""The form in which the documentation writes a Redis URL with a password: one that every program here takes."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.store import connect

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = ("README.md", "SECURITY.md", ".env.example", "docs", "docker", "ops")
TEXTS = {".md", ".yaml", ".env", ".example", ".py", ".mjs", ".json"}
PASSWORD = "pass/word"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server with a password and no user of its own, by the URL that docs/settings.md gives for it."""
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    (form,) = re.findall(r"without users of its own has the user `default`:\s+`(\S+)`", page)
    with ValkeyServer(tmp_path / "valkey") as server:
        with connect(server.url) as client:
            client.config_set("requirepass", PASSWORD)
        place = f"127.0.0.1:{server.port}"
        yield form.replace("PASSWORD", PASSWORD.replace("/", "%2F")).replace("HOST:6379", place)


def test_no_page_and_no_manifest_leaves_the_user_out() -> None:
    files = [file for name in WRITTEN for file in (ROOT / name, *(ROOT / name).rglob("*")) if file.is_file()]
    texts = {file: file.read_text(encoding="utf-8") for file in files if file.suffix in TEXTS}
    assert any("redis://default:" in text for text in texts.values())
    assert [file for file, text in texts.items() if re.search(r"rediss?://:", text)] == []


def test_jobs_and_broker_take_the_form(url: str) -> None:
    with connect(url) as client:
        assert client.ping()
    with Celery(broker=url, set_as_current=False).connection() as broker:
        broker.ensure_connection(max_retries=1)
        assert broker.connected


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="no redis-cli is installed here")
def test_redis_cli_takes_the_form(url: str) -> None:
    done = subprocess.run(
        ["redis-cli", "-e", "-u", url, "ping"], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (0, "PONG\n")
