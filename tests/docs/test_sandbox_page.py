"""The page on the sandbox: its test file runs as it is shown, its tables name all that there is, as do the extras."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from segmind_sandbox.control import TrainingChange
from segmind_sandbox.faults import READS, STORAGE_OPS, read_fault
from segmind_sandbox.settings import SandboxSettings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/sandbox.md").read_text(encoding="utf-8")


def test_the_test_file_for_another_service_runs(tmp_path: Path) -> None:
    [shown] = re.findall(r"^```python\n(import pytest\n.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "test_orders.py").write_text(shown, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def named(heading: str, column: int) -> set[str]:
    """The words in code of one column of the first table below a heading."""
    table = PAGE.partition(f"\n## {heading}\n")[2].partition("\n| ")[2].partition("\n\n")[0]
    return {word for row in table.splitlines()[2:] for word in re.findall(r"`(\w+)`", row.split("|")[column])}


def test_the_tables_name_every_option_operation_fault_and_change() -> None:
    assert named("Options", 1) == set(SandboxSettings.model_fields)
    assert named("Faults", 1) >= STORAGE_OPS | {"api", "submit", "list", "training"}
    assert named("Faults", 2) >= {kind for op in ("api", "list", "training", *READS) for kind in kinds(op)}
    assert named("Control API", 2) >= set(TrainingChange.model_fields)


def kinds(op: str) -> list[str]:
    try:
        read_fault({"op": op, "kind": ""})
    except ValueError as refusal:
        return str(refusal).partition("known: ")[2].split(", ")
    return []


def test_the_extras_are_those_of_the_package() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = (ROOT / "docs/sdk.md").read_text(encoding="utf-8").partition("| extra |")[2].partition("\n\n")[0]
    named = {
        name for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }
    assert named == set(package["optional-dependencies"])
