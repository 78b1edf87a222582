"""A worker as the first process of its container, to which the kernel gives no signal that it has no handler for."""

import os
import subprocess
import sys

import pytest

UNSHARE = ["unshare", "--pid", "--fork", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]


def may_unshare() -> bool:
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=60, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not may_unshare(), reason="cannot make a namespace of processes here")
def test_a_stop_that_comes_while_a_worker_loads_ends_it() -> None:
    loaded = "import os, signal; import finetune_worker; finetune_worker.app; os.kill(os.getpid(), signal.SIGTERM)"
    program = f"{loaded}; print('goes on')"
    command = [*UNSHARE, sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (128 + 15, "", "")
