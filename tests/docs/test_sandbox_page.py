"""The page on the sandbox: its test file runs as it is shown, and the extras that pages name are there."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/sandbox.md").read_text(encoding="utf-8")


def test_the_test_file_for_another_service_runs(tmp_path: Path) -> None:
    [shown] = re.findall(r"^```python\n(import pytest\n.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "test_orders.py").write_text(shown, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)]
    done = subprocess.run(
        command, env=os.environ, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_the_extras_are_those_of_the_package() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = (ROOT / "docs/sdk.md").read_text(encoding="utf-8").partition("| extra |")[2].partition("\n\n")[0]
    named = {
        name for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }
    assert named == set(package["optional-dependencies"])
