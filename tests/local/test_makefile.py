"""The Makefile helps, and says what is missing instead of failing somewhere later."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKE = shutil.which("make")

pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")


def _make(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {"PATH": str(path) if path else "/usr/bin:/bin"}
    command = [str(MAKE), "-C", str(ROOT), "--no-print-directory", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def _python(folder: Path, name: str, minor: int) -> None:
    """A program that answers the Makefile's question about its version as Python 3.`minor` would, and has no venv."""
    answer = 0 if minor >= 11 else 1
    (folder / name).write_text(
        f"#!/bin/sh\ncase $1 in\n-c) exit {answer} ;;\n--version) echo Python 3.{minor} ;;\n*) exit 1 ;;\nesac\n"
    )
    (folder / name).chmod(0o755)


def test_every_target_is_in_the_help() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = next(line for line in text.splitlines() if line.startswith(".PHONY:")).split()[1:]
    shown = _make().stdout
    assert targets
    assert [target for target in targets if f"make {target} " not in shown] == []


def test_a_python_that_is_too_old_is_refused_with_what_to_do(tmp_path: Path) -> None:
    _python(tmp_path, "python3", 10)
    made = _make("test", f"VENV={tmp_path}/venv", path=tmp_path)
    assert made.returncode != 0
    assert "Python 3.11 or later is needed" in made.stdout
    assert "make test PYTHON=/path/to/python3" in made.stdout
    assert not (tmp_path / "venv").exists()


def test_a_newer_python_is_found_beside_an_old_one_and_its_lack_of_venv_is_explained(tmp_path: Path) -> None:
    _python(tmp_path, "python3", 9)
    _python(tmp_path, "python3.12", 12)
    made = _make("install", f"VENV={tmp_path}/venv", path=tmp_path)
    assert made.returncode != 0
    assert "with Python 3.12." in made.stdout
    assert "install python3-venv" in made.stdout


def test_lock_says_that_it_needs_uv(tmp_path: Path) -> None:
    made = _make("lock", path=tmp_path)
    assert made.returncode != 0
    assert "make lock needs uv" in made.stdout


@pytest.mark.parametrize(
    ("installed", "targets"), [([], "check test test-long"), (["node"], "check test test-long node-test")]
)
def test_what_ci_runs_is_make(tmp_path: Path, installed: list[str], targets: str) -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    for name in ("chromium", "rabbitmq-server", "promtool", *installed):
        (tmp_path / name).symlink_to("/bin/true")
    (tmp_path / "make").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "make").chmod(0o755)
    ran = subprocess.run([script], env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == f"{targets}\n"


def test_the_samples_for_node_need_node(tmp_path: Path) -> None:
    for name in ("sh", "touch"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    made = _make("node-test", "--old-file=.venv/.installed-dev", path=tmp_path)
    assert made.returncode != 0
    assert "make node-test needs node" in made.stdout
