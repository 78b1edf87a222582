"""What a job came to, in lines."""

from finetune_queue.cli import output, words
from finetune_queue.cli.follow import Snapshot
from finetune_queue.cli.output import ExitCode
from finetune_queue.contract import RETRY_IS_USELESS, Access, JobState
from finetune_queue.plain_words import byte_size

Facts = list[tuple[str, str]]

_COPIED = frozenset({"weights", "manifest", "again"})
"""What a person copies from a terminal: a path or command that is broken into two lines would come along as two."""


def exit_code(state: JobState) -> ExitCode:
    """Return the exit code of a command that waited for a job which ended in ``state``."""
    return ExitCode.OK if state is JobState.SUCCEEDED else ExitCode.FAILED


def print_summary(seen: Snapshot) -> None:
    """Say how the job ended, and what to do if it did not end well."""
    state = seen.job.state
    style = {JobState.SUCCEEDED: "green", JobState.CANCELLED: "yellow"}.get(state, "red")
    print_facts(f"{words.printable(seen.job.record.request.name)}: {state}", facts(seen), style=style)


def facts(seen: Snapshot) -> Facts:
    """Return what is worth knowing of a job that has ended, as label and value."""
    record = seen.job.record
    found: Facts = []
    if record.weights is not None:
        weights = record.weights
        found += [
            ("weights", words.near(weights.url)),
            ("size", f"{byte_size(weights.bytes)} in {weights.tensors} tensors"),
            ("sha256", weights.sha256),
            ("manifest", words.near(weights.manifest_url)),
        ]
    if record.error is not None and record.state is JobState.FAILED:
        found += [("error", words.printable(record.error.message)), ("code", record.error.code)]
        if record.error.action:
            found.append(("do", words.printable(record.error.action)))
    if record.state is JobState.CANCELLED and record.finetune_id is not None:
        found.append(("note", "Segmind's training continues and is still charged: its API has no cancel."))
    if record.access is not None:
        found += _access_facts(record.access, seen)
    error = record.error
    if record.state is JobState.FAILED and (error is None or (error.stage, error.code) not in RETRY_IS_USELESS):
        found.append(("again", f"{output.program()} retry {record.id}"))
    found.append(("job", record.id))
    if record.finetune_id is not None:
        found.append(("training", words.printable(record.finetune_id)))
    if record.slug is not None:
        found.append(("slug", words.printable(record.slug)))
    if seen.events and seen.job.done:
        ended = next(event for event in reversed(seen.events) if event.kind == record.state.value)
        took = (ended.time - seen.events[0].time).total_seconds()
        found += [("event", ended.id), ("took", words.duration(took))]
    if record.dataset_report:
        found.append(("dataset", words.report_line(record.dataset_report)))
        found += [("warning", line) for line in words.report_warnings(record.dataset_report)]
    return found


def _access_facts(access: Access, seen: Snapshot) -> Facts:
    known = str(access.confirmed or "")
    if access.wanted is not None:
        waits = "" if seen.waiting is None else f": {words.waiting_line(seen.waiting, access.error)}"
        known = f"{known}, to be made {access.wanted}{waits}".removeprefix(", ")
    found = [("access", known)] if known else []
    if access.error is not None and access.wanted is None:
        found += [("refused", words.printable(access.error.message)), ("do", words.printable(access.error.action))]
    return found


def print_facts(title: str, found: Facts, *, style: str) -> None:
    """Print labels and values as lines; on a terminal, sentences that are too long for one go on below themselves."""
    from rich.table import Table
    from rich.text import Text

    console = output.out()
    console.print(Text(title, style=f"bold {style}"), soft_wrap=True)
    for label, value in found:
        head = Text(f"  {label:<9} ", style="dim", end="")
        if label in _COPIED or not console.is_terminal:
            console.print(head, end="")
            console.print(Text(value), soft_wrap=True)
            continue
        row = Table.grid()
        row.add_column(no_wrap=True)
        row.add_column(overflow="fold")
        row.add_row(head, value)
        console.print(row)
