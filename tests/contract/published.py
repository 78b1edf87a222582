"""The published contract as it lies in docs/contract."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "contract"
EXAMPLES = sorted((FOLDER / "examples").glob("*.json"))


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text("utf-8"))


def validator(name: str) -> Draft202012Validator:
    schema = load(f"{name}.schema.json")
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=FormatChecker())
