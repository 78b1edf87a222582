"""The chaos program's modules: it lies beside the packages and is not one of them."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def chaos(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(ROOT / "ops" / "chaos")
    names = ("agenda", "callers", "checker", "history", "on_processes", "report", "run", "script", "witness")
    return SimpleNamespace(**{name: import_module(f"finetune_chaos.{name}") for name in names})
