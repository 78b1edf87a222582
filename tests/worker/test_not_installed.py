"""A worker without the extra `worker`."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("missing", ["standardwebhooks", "requests"])
def test_a_worker_without_its_extra_says_what_to_install(missing: str) -> None:
    start = f"""
import sys
sys.modules[{missing!r}] = None
sys.argv = ["celery", "-A", "finetune_worker", "worker"]
from celery.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    said = f"A worker needs {missing}, which is not installed: pip install 'finetune-queue[worker]'"
    assert done.stderr.strip() == said
