"""No secrets of this machine."""

from pathlib import Path

import pytest

from finetune_queue import setting_sources


@pytest.fixture(autouse=True)
def _no_secrets_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setting_sources, "DEFAULT_SECRETS_DIR", tmp_path / "run-secrets")
