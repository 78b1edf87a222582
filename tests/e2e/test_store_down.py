"""The store out of reach while the broker is not: what a raw client sent waits for it."""

from pathlib import Path

from finetune_queue.contract import JobState
from finetune_queue.local.stack import LocalStack
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.messaging import QUEUE, RUN, producer_app
from finetune_queue.sdk import FineTuneQueue
from finetune_queue.settings import load_settings
from finetune_queue.staging import stage
from support.images import make_dataset_folder
from support.samples import sample
from support.until import until


def test_a_raw_request_survives_an_outage_of_the_store(tmp_path: Path) -> None:
    images = make_dataset_folder(tmp_path / "images")
    with ValkeyServer(tmp_path / "broker") as broker:
        running = LocalStack(
            tmp_path / "stack",
            rate_limit="50/1",
            sandbox={"SANDBOX_TRAINING_SECONDS": "0.2", "SANDBOX_WEIGHTS_BYTES": "65536"},
            settings={"FINETUNE_BROKER_URL": broker.url, "FINETUNE_POLL_MIN_INTERVAL": "0.2"},
        )
        with running as stack:
            settings = load_settings(stack.settings_env)
            staged = stage(str(images), settings)
            stack.valkey.kill()
            sent = producer_app(settings).send_task(RUN, [sample(dataset=staged)], queue=QUEUE)
            [worker] = stack.workers
            worker.wait_for_line(lambda line: "request_put_back" in line, timeout=30)
            stack.valkey.restart()

            with FineTuneQueue(settings) as queue:
                until(lambda: any(job.id == sent.id for job in queue.list()), seconds=30)
                assert queue.get(sent.id).wait(60).state is JobState.SUCCEEDED
