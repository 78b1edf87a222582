"""The alerts as they are in ops/monitoring, the queries of the service levels, and the names of metrics in both."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "ops" / "monitoring" / "alerts.yaml"
DASHBOARD = ROOT / "ops" / "monitoring" / "dashboard.json"

_SELECTOR = re.compile(r"\b(up|finetune_[a-z_]+)(?:\{([^}]*(?:\{[^}]*\}[^}]*)*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')


def alerts() -> dict[str, dict[str, Any]]:
    """Return each alert by its name."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def objectives() -> list[str]:
    """Return the queries of docs/slo.md."""
    page = (ROOT / "docs" / "slo.md").read_text(encoding="utf-8")
    return re.findall(r"^```promql\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """Return each metric in an expression, with the labels that it is selected by."""
    return [(name, set(_MATCHER.findall(inside or ""))) for name, inside in _SELECTOR.findall(expression)]
