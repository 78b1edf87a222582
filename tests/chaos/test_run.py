"""A short run of the chaos, with the real parts: another one each time, its seed printed."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.long

SECONDS, JOBS = 6.0, 30


@pytest.mark.timeout(240)
def test_nothing_is_lost_and_nothing_paid_twice(chaos: SimpleNamespace, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"chaos seed {seed}")  # noqa: T201 - shown when it fails
    lines: list[str] = []
    script = chaos.script.write(seed, SECONDS, JOBS)
    history = chaos.run.run(script, tmp_path / "stack", workers=2, training=0.5, say=lines.append)

    verdict = chaos.checker.judge(history)
    assert {name: said for name, said in verdict.items() if said} == {}, "\n".join([f"seed {seed}", *lines])
    assert len(history.promises) == JOBS
    assert any(history.fired.values())
