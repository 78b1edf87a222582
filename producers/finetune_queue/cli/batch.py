"""``finetune submit`` with a request on each line of a file: one bad line stops no other, and repeating is safe."""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from finetune_queue import tracing
from finetune_queue.cli import output, words
from finetune_queue.cli.lines import Lines
from finetune_queue.cli.output import CliError, ExitCode
from finetune_queue.cli.requests import Options, file_name, parse_deadline
from finetune_queue.cli.session import note_default_staging, open_queue
from finetune_queue.contract import JobState
from finetune_queue.errors import FineTuneQueueError
from finetune_queue.plain_words import escaped_lines
from finetune_queue.sdk import Job, Submission
from finetune_queue.sdk.submitting import LONGEST_BATCH_NAME, is_batch_name
from finetune_queue.settings import load_settings

BATCH = "jsonl"
"""The name that goes into the lines' idempotency keys when the caller gives none."""


def submit_lines(file: str, options: Options, *, batch: str | None, as_json: bool) -> ExitCode:
    """Submit every line. ``batch`` names this batch, so that another name submits the same lines as new jobs.

    Raises:
        SettingsError, CliError: the file cannot be read or holds no request, an option is not one that many requests
            can have, or the queue went out of reach.
    """
    if options.deadline is not None:
        parse_deadline(options.deadline, keyed=True)
    if batch is not None and not is_batch_name(batch):
        message = f"--idempotency-key names the batch here, with 1 to {LONGEST_BATCH_NAME} characters."
        raise output.usage_error(message)
    settings = load_settings()
    with open_queue(settings) as queue, tracing.running("finetune-cli"), Lines.of(file) as lines:
        tally = Tally(as_json=as_json)
        under_way: deque[int] = deque()  # the numbers of the lines that were taken and not yet answered
        noted = False
        requests = _requests(lines, options, tally, under_way)
        try:
            with bar(lines, tally) as tick:
                for submission in queue.submit_many(requests, batch=BATCH if batch is None else batch):
                    tally.add(under_way.popleft(), submission)
                    if not noted and submission.new and submission.job is not None:
                        noted = note_default_staging(settings, submission.job.record.request.dataset)
                    tick()
        except KeyboardInterrupt:
            raise tally.cut_short("Interrupted.", ExitCode.INTERRUPTED, "interrupted") from None
        except FineTuneQueueError as error:
            end = output.expected(error)
            raise tally.cut_short(str(end), end.exit_code, end.code) from None
        if tally.empty:
            raise output.usage_error(f"{file_name(file)} holds no request.")
        if not as_json:
            tally.print()
        return ExitCode.FAILED if tally.refused else ExitCode.OK


class Tally:
    """Counts and reports what became of each line, and in the end of all of them."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.new = 0
        self.known: Counter[JobState] = Counter()
        self.refused = 0

    @property
    def empty(self) -> bool:
        """Whether there was no line at all."""
        return not (self.new or self.known or self.refused)

    def add(self, number: int, submission: Submission) -> None:
        """Tell what became of a request."""
        if submission.error is not None:
            error = output.expected(submission.error)
            if error.exit_code is not ExitCode.UNAVAILABLE:
                self.refuse(number, error)
            elif self.as_json:  # for people it is said once, in the end
                _emit_error(number, error)
        elif submission.job is not None:
            self._count(number, submission.job, new=submission.new)

    def _count(self, number: int, job: Job, *, new: bool) -> None:
        if new:
            self.new += 1
        else:
            self.known[job.state] += 1
        if self.as_json:
            key = job.record.request.idempotency_key
            output.emit_line({"line": number, "job_id": job.id, "state": job.state, "new": new, "idempotency_key": key})

    def refuse(self, number: int, error: CliError) -> None:
        """Tell why a line became no job."""
        self.refused += 1
        if self.as_json:
            _emit_error(number, error)
            return
        from rich.text import Text

        said = escaped_lines("; ".join(error.details.get("problems", ())) or str(error))
        label = Text(f"line {number}: ", style="bold red")
        output.errors().print(label.append(said, style="not bold default"), soft_wrap=True)

    def print(self) -> None:
        """Say what came of all lines."""
        for sentence in self._sentences():
            output.say(sentence)
        if self.new or self.known:
            output.say(f"Follow them: {output.program()} watch")

    def cut_short(self, why: str, exit_code: ExitCode, code: str) -> CliError:
        """Make the error for an end before the last line."""
        so_far = " ".join(self._sentences())
        again = "Run the same command again: it submits what is missing, and nothing twice."
        details = {"new": self.new, "known": self.known.total(), "refused": self.refused}
        return CliError(f"{why} {so_far} {again}", exit_code, code, **details)

    def _sentences(self) -> Iterator[str]:
        yield f"{words.count(self.new, 'new job')} on the queue."
        if self.known:
            states = ", ".join(f"{number:,} {state}" for state, number in self.known.most_common())
            yield f"{words.count(self.known.total(), 'line')} had a job already ({states})."
        if self.refused:
            yield f"{words.count(self.refused, 'line')} {'was' if self.refused == 1 else 'were'} refused."


def _requests(lines: Lines, options: Options, tally: Tally, under_way: deque[int]) -> Iterator[dict[str, Any]]:
    """Yield the request of each line, with the line's number put into ``under_way``; a line without one is refused."""
    for number, body in lines:
        try:
            if isinstance(body, CliError):
                raise body
            request = options.over(body, keyed=True)
        except CliError as error:
            tally.refuse(number, error)
        else:
            under_way.append(number)
            yield request


@contextmanager
def bar(lines: Lines, tally: Tally) -> Iterator[Callable[[], None]]:
    """Show on a terminal how far it is, while the block runs; yields what to call after each line."""
    console = output.errors()
    if tally.as_json or not console.is_terminal:
        yield lambda: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("Submitting", total=lines.size)

        def tick() -> None:
            jobs = words.count(tally.new + tally.known.total(), "job")
            refused = f", {tally.refused:,} refused" if tally.refused else ""
            progress.update(task, completed=lines.done, description=f"{jobs}{refused}")

        yield tick


def _emit_error(number: int, error: CliError) -> None:
    body = {"code": error.code, "message": str(error), **error.details}
    output.emit_line({"line": number, "error": body})
