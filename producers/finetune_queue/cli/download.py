"""``finetune download``: a job's weights, from where they are stored to a file here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from finetune_queue.cli import output, words
from finetune_queue.cli.output import CliError, ExitCode
from finetune_queue.cli.session import open_queue
from finetune_queue.home_path import home_path
from finetune_queue.plain_words import byte_size
from finetune_queue.progress import OnProgress


def download(job_id: str, target: str, *, force: bool, as_json: bool) -> ExitCode:
    """Copy the job's weights to ``target``, and say where they are."""
    folder = os.sep if target.endswith(os.sep) else ""  # a path forgets it
    with open_queue() as queue:
        job = queue.get(job_id)
        try:
            with _bar(shown=not as_json) as on_progress:
                path = job.download(f"{home_path(target)}{folder}", force=force, on_progress=on_progress)
        except KeyboardInterrupt:
            message = "Nothing was kept; the same command begins again."
            raise CliError(message, ExitCode.INTERRUPTED, "interrupted") from None
    weights = job.as_dict()["weights"]
    if as_json:
        stored = {name: weights[name] for name in ("url", "bytes", "sha256")}
        output.emit({"job_id": job.id, "path": str(path.absolute()), **stored})
    else:
        output.say(f"The weights of job {job.id} are in {words.printable(path)}.")
        output.say(f"{byte_size(weights['bytes'])}, verified: sha256 {weights['sha256']}")
    return ExitCode.OK


@contextmanager
def _bar(*, shown: bool) -> Iterator[OnProgress | None]:
    """Show on a terminal how far the download is; yields what it reports to."""
    console = output.errors()
    if not (shown and console.is_terminal):
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("")
        yield lambda done, total: progress.update(task, completed=done, total=total)
