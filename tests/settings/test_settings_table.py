"""The generated settings table is what the settings say, and a difference does not go unseen."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_queue.settings import AccountSettings, Settings
from finetune_worker import celery

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path("ops/settings_table.py")
FILES = [SCRIPT, Path("README.md"), Path("docs/settings.md"), Path(".env.example")]


def _run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for path in FILES:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    return tmp_path


def test_the_committed_files_agree_with_the_settings() -> None:
    checked = _run(ROOT, "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_setting_is_in_each_generated_file() -> None:
    for path in ("docs/settings.md", ".env.example"):
        text = (ROOT / path).read_text()
        assert [name for name in Settings.model_fields if name.upper() not in text] == []


def test_every_field_of_an_account_is_explained() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert [name for name in AccountSettings.model_fields if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize("path", ["docs/settings.md", ".env.example"])
def test_a_changed_file_is_named_and_mended(copy: Path, path: str) -> None:
    original = (copy / path).read_text()
    (copy / path).write_text(original.replace("free plan", "expensive plan"))
    checked = _run(copy, "--check")
    assert checked.returncode == 1
    assert checked.stdout == f"{path} differs from the settings: run `python ops/settings_table.py`\n"
    assert _run(copy).returncode == 0
    assert (copy / path).read_text() == original


def test_text_around_the_table_is_kept_and_half_a_pair_of_markers_is_refused(copy: Path) -> None:
    page = copy / "docs" / "settings.md"
    text = page.read_text()
    page.write_text(f"before {text} after")
    assert _run(copy, "--check").returncode == 0
    page.write_text(text.replace("<!-- settings: end -->", ""))
    assert "should hold each marker of the settings table once" in _run(copy, "--check").stderr


def test_the_message_shown_in_the_page_is_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    example = re.search(r"```console\n\$ (.*?)\n(.*?)\n```", page, re.DOTALL)
    assert example
    for assignment in re.findall(r"(\w+)=(\S+)", example[1]):
        monkeypatch.setenv(*assignment)
    monkeypatch.setattr(sys, "argv", example[1].split())
    with pytest.raises(SystemExit) as caught:
        celery._load()
    assert str(caught.value) == example[2]
    monkeypatch.setattr(sys, "argv", ["celery", "-A", "finetune_worker", "flower"])
    with pytest.raises(SystemExit, match="2 settings are wrong"):  # only a worker needs a key
        celery._load()
