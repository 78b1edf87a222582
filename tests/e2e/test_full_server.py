"""A worker that starts on a server without room: it says so once, waits, and takes work when there is room again."""

from pathlib import Path

from finetune_queue.local.stack import LocalStack
from finetune_queue.store import connect
from support.full import full


def test_a_worker_that_starts_on_a_full_server_waits_and_says_so_once(tmp_path: Path) -> None:
    with LocalStack(tmp_path, workers=0) as stack, connect(stack.valkey.url) as client:
        with full(client):
            worker = stack.launch_worker("worker1")
            worker.wait_for_line(lambda line: "broker_refuses_writes" in line, timeout=30)
            worker.wait_for_line(lambda line: "loop_waits_for_redis" in line, timeout=30)  # a loop beside it met it
        worker.wait_for_line(lambda line: " ready." in line, timeout=30)
        said = worker.lines()
    assert len([line for line in said if "broker_refuses_writes" in line]) == 1
    assert [line for line in said if "Traceback" in line or "Cannot connect" in line or "restarts" in line] == []
