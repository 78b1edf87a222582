"""A worker whose threads are all busy: more waits in the queue, where it is counted and others may take it."""

from pathlib import Path

from finetune_queue.messaging import QUEUE, RUN, Messenger, producer_app
from support.other_stack import OtherStack
from support.samples import sample
from support.until import until

THREADS, MORE = 2, 7
SECONDS = 30


class HeldStack(OtherStack):
    """One whose worker has tasks that keep a thread busy."""

    application = "support.odd_worker"


def test_what_a_busy_worker_cannot_run_waits_in_the_queue(tmp_path: Path) -> None:
    begun, done = [tmp_path / f"begun-{number}" for number in range(THREADS)], tmp_path / "done"
    with HeldStack(tmp_path / "stack", threads=THREADS) as stack, producer_app(stack.settings) as app:
        messenger = Messenger(app)
        for began in begun:
            app.send_task("odd.hold", args=[str(began), str(done)], queue=QUEUE)
        until(lambda: all(began.exists() for began in begun), seconds=SECONDS)
        for _ in range(MORE):
            app.send_task(RUN, [sample()], queue=QUEUE)
        for _ in range(3):  # rounds of the worker's event loop, in each of which it could take one
            assert app.control.ping(limit=1, timeout=SECONDS)
        assert messenger.queued(QUEUE) == MORE
        done.touch()
        until(lambda: messenger.queued(QUEUE) == 0, seconds=SECONDS)
