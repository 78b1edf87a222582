"""``finetune demo``: the whole system on this machine, one fine-tune through it, and what came of it."""

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from finetune_queue.cli import output, words
from finetune_queue.cli.display import display
from finetune_queue.cli.follow import Show, Snapshot, follow, look
from finetune_queue.cli.output import CliError, ExitCode, usage_error
from finetune_queue.cli.session import open_queue
from finetune_queue.cli.summary import exit_code, print_summary
from finetune_queue.contract import FineTuneRequest, JobState
from finetune_queue.errors import WaitTimeoutError
from finetune_queue.home_path import home_path
from finetune_queue.local.processes import ProcessError
from finetune_queue.local.stack import LocalStack
from finetune_queue.local.valkey import ServerNotFoundError

TRAINING_SECONDS = 6
JOB_TIMEOUT = 120.0
"""Seconds after which something must be wrong with the demo's own system."""

_NEEDED = ("requests", "ijson", "starlette", "uvicorn", "httpx")
"""What the worker and the sandbox import and only the extras install."""


def demo(folder: Path, *, keep: bool, as_json: bool) -> ExitCode:
    """Run it. The weights stay in ``folder``; everything else goes, unless ``keep`` is set or something failed.

    Raises:
        CliError: a part is not installed, did not start or ended; there is no temporary folder; the job did not end;
            or Ctrl-C.
    """
    _check_installed()
    results = home_path(folder).absolute()
    try:
        results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise usage_error(f"{folder} cannot be created: {error.strerror}. Name another with --output.") from None
    try:
        work = Path(tempfile.mkdtemp(prefix="finetune-demo-"))
    except OSError as error:
        why = f"There is no temporary folder for its logs and data: {error.strerror}."
        message = f"{why} Name one that can be written in TMPDIR."
        raise CliError(message, ExitCode.UNAVAILABLE, "local_system") from None
    worth_keeping = True
    try:
        with _sigterm_as_ctrl_c():
            code = _run(work, results, keep=keep, as_json=as_json)
        worth_keeping = keep or code is not ExitCode.OK
    except KeyboardInterrupt:
        worth_keeping = keep
        message = "Everything that the demo started has ended."
        raise CliError(message, ExitCode.INTERRUPTED, "interrupted") from None
    except (ProcessError, ServerNotFoundError) as error:
        raise CliError(str(error), ExitCode.UNAVAILABLE, "local_system", folder=str(work)) from None
    except WaitTimeoutError as error:
        message = f"{error} See the worker's log."
        raise CliError(message, ExitCode.TIMEOUT, "timeout", folder=str(work)) from None
    finally:
        if not worth_keeping:
            shutil.rmtree(work, ignore_errors=True)
        elif not as_json:  # there the document or the error has it
            output.errors().print(f"Logs and data are in {work}", soft_wrap=True)
    return code


def _run(work: Path, results: Path, *, keep: bool, as_json: bool) -> ExitCode:
    from finetune_queue.cli.demo_images import PROMPT, TRIGGER, draw_dataset

    if not as_json:
        output.say("One fine-tune from images to verified weights, on this machine and at no cost.\n")
    with _step("draw 8 pictures of a small robot, with captions", quiet=as_json):
        pictures = draw_dataset(work / "pictures")
    request = FineTuneRequest(
        name="demo-robot",
        instance_prompt=PROMPT,
        trigger_word=TRIGGER,
        advance_parameters={"steps": 500, "face_crop": False, "finetune_type": "LORA"},
        dataset=str(pictures[0].parent),
        labels={"from": "demo"},
    )
    stack = LocalStack(
        work,
        sandbox={"SANDBOX_TRAINING_SECONDS": str(TRAINING_SECONDS)},
        settings={"FINETUNE_ARTIFACT_URL": results.as_uri()},
    )
    with ExitStack() as ends:
        with _step("start Valkey, a sandbox in place of Segmind, and a worker", quiet=as_json):
            ends.enter_context(stack)
        queue = ends.enter_context(open_queue(stack.settings))
        with _step("pack the pictures and put the request on the queue", quiet=as_json):
            job = queue.submit(request)
        if not as_json:
            output.say(f"\nJob {job.id}")
        follow(queue, job, timeout=JOB_TIMEOUT, show=_watched(stack, quiet=as_json))
        seen = look(queue, job)
        calls = {name: sum(outcomes.values()) for name, outcomes in stack.sandbox_calls().items() if name in _API}
        if as_json:
            event = seen.events[-1].model_dump(mode="json")
            kept = str(work) if keep or seen.job.state is not JobState.SUCCEEDED else None
            output.emit({"job": seen.job.as_dict(), "event": event, "api_calls": calls, "folder": kept})
        else:
            _tell(seen, calls)
            if output.out().is_interactive:
                ends.enter_context(output.out().status("stopping Valkey, the sandbox and the worker"))
    return exit_code(seen.job.state)


def _check_installed() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        message = f"The demo needs {', '.join(missing)}: pip install 'finetune-queue[worker,sandbox]'"
        raise CliError(message, ExitCode.MISSING, "not_installed")


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """End in order, with all that was started, when something else than a person ends the demo."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _step(what: str, *, quiet: bool) -> Iterator[None]:
    """Show what is being done while it is, and how long it took."""
    if quiet:
        yield
        return
    from rich.text import Text

    console = output.out()
    started = time.monotonic()
    with console.status(Text(what)) if console.is_interactive else ExitStack():
        yield
    mark = "+" if console.options.ascii_only else "✓"
    took = words.duration(time.monotonic() - started)
    console.print(Text.assemble((mark, "green"), f" {what}  ", (took, "dim")), soft_wrap=True)


@contextmanager
def _watched(stack: LocalStack, *, quiet: bool) -> Iterator[Show]:
    """Show the job, and end at once when a part of the system does: the job would wait for ever.

    Raises:
        ProcessError: with the last lines of its log.
    """

    def check() -> None:
        for child in stack.children:
            if not child.running:
                raise child.failure(f"ended with exit code {child.returncode}")

    with ExitStack() as shown:
        inner = None if quiet else shown.enter_context(display())

        def show(seen: Snapshot) -> None:
            if inner is not None:
                inner(seen)
            check()

        yield show


_API = ("presign", "submit", "list", "details")
"""The operations that a job may need and that count against the account's limit."""

_NARROW = 84
"""Columns below which a hash in the event's JSON has no room beside two spaces a level."""


def _tell(seen: Snapshot, calls: dict[str, int]) -> None:
    """Print what came of it and where to go from here."""
    from rich.json import JSON

    console = output.out()
    output.say("")
    print_summary(seen)
    output.say("\nThe result event, as a downstream service receives it:\n")
    indent = 1 if console.is_terminal and console.width < _NARROW else 2
    console.print(JSON(seen.events[-1].model_dump_json(), indent=indent), soft_wrap=True)
    spent = ", ".join(f"{number} {operation}" for operation, number in calls.items())
    output.say(f"\nAPI calls: {sum(calls.values())} of the account's 50 a minute ({spent}).\n")
    output.say("Next:")
    submit = f"{output.program()} submit --help"
    for what, meaning in (
        ("make up", "the same system, kept running, with Flower in the browser"),
        (submit, "fine-tune your own pictures on it"),
        ("README.md", "use a real API key: every training is then charged"),
    ):
        output.say(f"  {what:<{len(submit)}}  {meaning}")
