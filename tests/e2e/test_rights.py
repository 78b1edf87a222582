"""The rights that docs/settings.md gives a user of Redis are enough for everything: the server refuses nothing."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx

from finetune_queue import FineTuneQueue
from finetune_queue.local.stack import LocalStack
from finetune_queue.local.valkey import ValkeyServer, free_port
from finetune_queue.store import connect
from support.images import make_dataset_folder

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")


def test_the_rights_of_the_page_are_enough_for_producer_worker_gateway_and_doctor(tmp_path: Path) -> None:
    [rights] = re.findall(r"acl setuser (finetune on .*)$", PAGE, re.MULTILINE)
    port = free_port()
    settings = {"FINETUNE_REDIS_URL": f"redis://finetune:PASSWORD@127.0.0.1:{port}/0"}
    sandbox = {"SANDBOX_TRAINING_SECONDS": "0.5"}
    stack = LocalStack(tmp_path, workers=0, gateway=True, rate_limit="50/1", sandbox=sandbox, settings=settings)
    stack.valkey = ValkeyServer(tmp_path / "valkey", port=port)
    with stack, connect(stack.valkey.url) as admin:
        admin.execute_command("ACL", "SETUSER", *shlex.split(rights))
        stack.start_worker("worker1")
        images = make_dataset_folder(tmp_path / "images", count=4, size=(64, 64))
        request = {"name": "a", "dataset": images, "trigger_word": "1MAN", "instance_prompt": "photo of 1MAN"}
        with FineTuneQueue(stack.settings) as queue:
            job = queue.submit({**request, "reply_to": ["celery://orders/orders.done"]}).wait(60)
            assert job.state == "succeeded"
            job.set_public(public=True)
            queue.stop_submits("default")
            queue.submit(request).cancel()
            assert len(list(queue.list())) == sum(queue.counts().values()) == 2
            queue.deliveries(job)
        with httpx.Client(base_url=stack.gateway_url, timeout=30) as http:
            assert "\nfinetune_up 1.0\n" in http.get("/metrics").text
            for path in ("/readyz", "/v1/overview", "/v1/load", "/v1/jobs", "/v1/events"):
                assert http.get(path).status_code == 200, path
        command = [sys.executable, "-m", "finetune_queue.cli", "doctor"]
        env = {**os.environ, **stack.worker_env}
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout
        # The gateway was there before its user.
        assert [entry for entry in admin.acl_log() if entry["reason"] != "auth"] == []
