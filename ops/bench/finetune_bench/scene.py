"""Where a contestant is measured: a fresh Valkey, a fresh sandbox, and its workers, all ready."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_bench.cases import Case
from finetune_bench.contestants import Contestant, Ground
from finetune_bench.ground import START, clean_environment, make_dataset, python, start_sandbox
from finetune_queue.local.processes import Child
from finetune_queue.local.valkey import ValkeyServer


@dataclass(frozen=True, slots=True)
class Scene:
    """What there is while it lasts."""

    ground: Ground
    sandbox: Child
    workers: Sequence[Child]


@contextmanager
def scene(
    folder: Path,
    case: Case,
    contestant: Contestant,
    *,
    workers: Sequence[Sequence[str]],
    sandbox_settings: Mapping[str, str],
) -> Iterator[Scene]:
    """Start everything in ``folder``, which is made, with a worker for each of these arguments; stop it at the end.

    Raises:
        ProcessError: a part could not start, or ended.
    """
    folder = folder.absolute()
    for part in ("weights", "secrets", "temporary"):
        (folder / part).mkdir(parents=True)
    with ExitStack() as stack:
        valkey = stack.enter_context(ValkeyServer(folder / "valkey"))
        sandbox, api = start_sandbox(folder, {**_of(case), **sandbox_settings})
        stack.callback(sandbox.stop)
        dataset = make_dataset(folder / "datasets")
        ground = Ground(folder, valkey.url, api["base_url"], api["api_keys"][0], dataset)
        env = {**clean_environment(), "TMPDIR": str(folder / "temporary"), **contestant.environment(case, ground)}
        started = []
        for number, arguments in enumerate(workers):
            log = folder / f"worker{number}.log"
            worker = Child(f"worker{number}", python(arguments), env=env, cwd=folder, log=log)
            stack.callback(worker.stop, grace=5.0)
            started.append(worker.start())
        for worker in started:
            worker.wait_for_line(lambda line: " ready." in line, timeout=START)
        yield Scene(ground, sandbox, started)


def _of(case: Case) -> dict[str, str]:
    return {
        "SANDBOX_RATE_LIMIT": f"{case.calls}/{case.window:g}",
        "SANDBOX_TRAINING_SECONDS": f"{case.training:g}",
        "SANDBOX_DEPLOY_SECONDS": "3600",
        "SANDBOX_LIST_CARRIES_WEIGHTS_URL": "true" if case.list_has_urls else "false",
    }
