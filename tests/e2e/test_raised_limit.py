"""A higher limit, set by stopping the worker and starting one with new settings, holds when that one starts."""

from pathlib import Path

from finetune_queue.local.stack import LocalStack
from finetune_queue.store import Accounts, connect
from finetune_queue.store.workers import GONE
from support.until import until


def test_a_raised_limit_holds_as_soon_as_the_new_worker_starts(tmp_path: Path) -> None:
    with LocalStack(tmp_path, rate_limit="5/60") as stack, connect(stack.valkey.url) as client:
        accounts = Accounts(client)
        assert accounts.status("default").limits.calls == 5
        stack.workers[0].stop()
        stack._more_settings["SEGMIND_RATE_LIMIT"] = "50/60"
        stack.launch_worker("worker2")
        # Much sooner than a worker that went without a word would be forgotten.
        until(lambda: accounts.status("default").limits.calls == 50, seconds=GONE / 2)
