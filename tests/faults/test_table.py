"""The table of faults in the docs names tests that are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d+) \|(.*)\|$", TABLE, re.MULTILINE)


def test_all_rows_are_there() -> None:
    assert [int(number) for number, _ in ROWS] == list(range(1, 47))


@pytest.mark.parametrize("row", [text for _, text in ROWS], ids=[number for number, _ in ROWS])
def test_each_row_names_tests_that_are_there(row: str) -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", row)
    assert named
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
