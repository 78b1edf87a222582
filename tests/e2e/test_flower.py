"""What Flower sees: Celery's own events of a job's stages, from real workers."""

from contextlib import suppress
from pathlib import Path

from celery.events.state import State

from finetune_queue.contract import Stage
from finetune_queue.local.stack import LocalStack
from finetune_queue.messaging import producer_app, stage_task
from finetune_queue.sdk import FineTuneQueue
from support.samples import sample
from support.until import until

SECONDS = 30


def test_every_stage_of_a_job_is_a_task_with_a_readable_result(
    queue: FineTuneQueue, images: Path, stack: LocalStack
) -> None:
    app = producer_app(stack.settings)
    seen = State()
    with app.connection_for_read() as broker:
        receiver = app.events.Receiver(broker, handlers={"*": seen.event})
        with receiver.consumer_context() as (connection, _, _):

            def look() -> None:
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.2)

            look()  # subscribes
            job = queue.submit(sample(dataset=str(images)))
            wanted = [stage_task(stage) for stage in Stage]

            def results() -> dict[str, str]:
                look()
                tasks = [task for _, task in seen.tasks_by_timestamp() if task.args and job.id in task.args]
                return {str(task.name): str(task.result) for task in tasks if task.state == "SUCCESS"}

            until(lambda: set(wanted) <= results().keys(), seconds=SECONDS)
            said = results()
    app.close()
    assert said["finetune.upload"].startswith("'uploaded 6 images")
    assert said["finetune.publish"].startswith("'succeeded: weights at file://")
