"""The whole system as processes: Valkey, the sandbox and two workers, started once for each process that runs tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_queue.local.stack import LocalStack
from finetune_queue.sdk import FineTuneQueue
from segmind_sandbox.testing import SandboxControl
from support.images import make_dataset_folder


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder = tmp_path_factory.mktemp("stack")
    running = LocalStack(
        folder,
        workers=2,
        rate_limit="50/1",
        sandbox={"SANDBOX_TRAINING_SECONDS": "0.5", "SANDBOX_WEIGHTS_BYTES": "262144"},
        settings={
            "FINETUNE_POLL_MIN_INTERVAL": "0.2",
            "FINETUNE_BACKOFF_BASE": "0.2",
            "FINETUNE_BACKOFF_MAX": "1",
            "FINETUNE_MAX_ATTEMPTS": "3",
            "FINETUNE_LOG_FORMAT": "json",
            "FINETUNE_LOG_LEVEL": "INFO",
        },
    )
    with running:
        yield running


@pytest.fixture
def queue(stack: LocalStack, control: SandboxControl) -> Iterator[FineTuneQueue]:
    with FineTuneQueue(stack.settings) as found:
        yield found


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_dataset_folder(folder, count=6)
    return folder
