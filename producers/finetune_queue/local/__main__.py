"""`python -m finetune_queue.local`: start the whole stack and stay until Ctrl-C (`make up`)."""

import os
import signal
import sys
import time
from datetime import datetime
from pathlib import Path
from types import FrameType

from finetune_queue.local.processes import Child, ProcessError
from finetune_queue.local.stack import LocalStack
from finetune_queue.local.valkey import ServerNotFoundError

_TICK = 0.2
_PRODUCER = ("FINETUNE_REDIS_URL", "FINETUNE_STAGING_URL", "FINETUNE_ARTIFACT_URL")
_ACCOUNT = ("SEGMIND_API_KEY", "SEGMIND_RATE_LIMIT", "FINETUNE_HOOK_SECRET")


def main() -> int:
    """Run until Ctrl-C, SIGTERM or the end of the terminal; 1 if a part could not start or ended by itself."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # also where a shell started us with them ignored
        signal.signal(number, _interrupt)
    now = datetime.now().astimezone()
    folder = Path("var") / "up" / f"{now:%Y%m%d-%H%M%S}-{os.getpid()}"
    try:
        with LocalStack(folder, flower=True, gateway=True) as stack:
            _say(_welcome(stack))
            return _watch(stack)
    except KeyboardInterrupt:
        _say(f"Stopped. Its data and logs are in {folder}.")
        return 0
    except (ProcessError, ServerNotFoundError, OSError) as error:  # OSError: the folder cannot be written
        print(error, file=sys.stderr)  # noqa: T201 - the terminal is the point
        return 1


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _welcome(stack: LocalStack) -> str:
    env = stack.settings_env
    return "\n".join(
        [
            f"Valkey   {stack.valkey.url}",
            f"Sandbox  {stack.sandbox_url}  (Segmind's API, emulated: trainings cost nothing)",
            f"Gateway  {stack.gateway_url}  (a page of all jobs, and the HTTP API)",
            f"Flower   {stack.flower_url}",
            f"Weights  {env['FINETUNE_ARTIFACT_URL']}",
            f"Logs     {stack.folder}",
            "",
            "To submit from another terminal:",
            *(f"  export {name}={env[name]}" for name in _PRODUCER),
            f"  export SEGMIND_BASE_URL={stack.sandbox_url}",
            "  .venv/bin/finetune submit --dataset FOLDER-OF-IMAGES --name my-face --trigger-word 1MAN \\",
            "    --prompt 'photo of 1MAN' --wait",
            "",
            "For finetune doctor --api and finetune webhooks, which ask the sandbox with its key, also:",
            *(f"  export {name}={stack.worker_env[name]}" for name in _ACCOUNT),
            "",
            "Ctrl-C ends everything.",
        ]
    )


def _watch(stack: LocalStack) -> int:
    """Show what the workers log, and restart any that SIGKILL ends, until a part ends in another way; returns 1."""
    while True:
        for worker in stack.workers:
            for line in worker.new_lines():
                _say(f"{worker.name} | {line}")
        for child in stack.children:
            if child.running:
                continue
            if child in stack.workers and child.returncode == -signal.SIGKILL:
                _say(f"{child.name} was killed. Starting it again: its jobs go on where they were.")
                child.start()
                continue
            print(child.failure(_how_it_ended(child)), file=sys.stderr)  # noqa: T201 - the terminal is the point
            return 1
        time.sleep(_TICK)


def _how_it_ended(child: Child) -> str:
    code = child.returncode or 0
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the terminal is the point


if __name__ == "__main__":
    sys.exit(main())
