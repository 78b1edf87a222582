"""Reading the queue: ``status``, ``list`` and ``events``."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from finetune_queue.cli import output, words
from finetune_queue.cli.follow import Snapshot, how_to_resolve, look, snapshots
from finetune_queue.cli.output import ExitCode, usage_error
from finetune_queue.cli.requests import parse_labels
from finetune_queue.cli.session import open_queue
from finetune_queue.cli.summary import Facts, facts, print_facts
from finetune_queue.cli.table import STATE_STYLES, jobs_table
from finetune_queue.cli.timeline import detail, event_line, steps
from finetune_queue.contract import DEFAULT_ACCOUNT, Event, JobState
from finetune_queue.contract.request import check_label_keys
from finetune_queue.sdk import FineTuneQueue, Job, Waiting


def status(job_id: str, *, as_json: bool) -> ExitCode:
    """Show one job: where it stands, why it waits, how it got there."""
    with open_queue() as queue:
        seen = look(queue, queue.get(job_id))
    if as_json:
        output.emit(job_json(seen.job, seen.waiting))
        return ExitCode.OK
    record = seen.job.record
    style = STATE_STYLES.get(record.state, "cyan")
    print_facts(f"{words.printable(record.request.name)}: {record.state}", _status_facts(seen), style=style)
    if output.out().is_terminal:
        from finetune_queue.cli.picture import Picture

        output.out().print(Picture(seen))
        return ExitCode.OK
    for step in steps(record, seen.events, seen.waiting, datetime.now(UTC), stranded=seen.stranded):
        if step.seconds is not None:
            output.say(f"  {step.state:<15} {words.duration(step.seconds):>8}  {step.detail}".rstrip())
    return ExitCode.OK


def _status_facts(seen: Snapshot) -> Facts:
    record = seen.job.record
    found: Facts = []
    if not seen.job.done:
        if tries := record.attempts + record.outages:
            found.append(("tries", str(tries)))
        if record.state is JobState.NEEDS_ATTENTION:
            found.append(("do", how_to_resolve(record.id)))
        elif record.error is not None and record.error.action:
            found.append(("do", words.printable(record.error.action)))
        if record.owner:  # if it died, this is all that shows why nothing moves until its lease is over
            sign = f"its last sign of life was {words.since(record.updated_ms)} ago"
            found.append(("worker", f"has the job; {sign}; if it has died, another takes over"))
    if record.state is JobState.NEEDS_ATTENTION:
        found += [("because", words.printable(line)) for line in record.evidence]
    found += facts(seen)
    if record.account != DEFAULT_ACCOUNT:
        found.append(("account", record.account))
    if record.request.labels:
        labels = ", ".join(f"{key}={value}" for key, value in sorted(record.request.labels.items()))
        found.append(("labels", words.printable(labels)))
    if record.traceparent:
        found.append(("trace", record.traceparent.split("-")[1]))
    found.append(("age", words.since(record.created_ms)))
    return found


def list_jobs(*, state: str | None, account: str | None, labels: Sequence[str], limit: int, as_json: bool) -> ExitCode:
    """Show the newest jobs that match."""
    wanted = parse_labels(labels)
    try:
        check_label_keys(wanted)
    except ValueError as error:
        raise usage_error(f"--label: {error}.") from None
    chosen = parse_state(state)
    with open_queue() as queue:
        jobs = list(queue.list(state=chosen, account=account, labels=wanted, limit=limit))
        if as_json:
            output.emit([job.as_dict() for job in jobs])
            return ExitCode.OK
        rows = [(job, queue.waiting(job)) for job in jobs]
        stranded = not all(job.done for job in jobs) and not queue.workers()
    if stranded:
        output.note(words.NO_WORKERS)
    if not rows:
        output.note("No jobs match." if chosen or account or wanted else "There are no jobs yet.")
        return ExitCode.OK
    console = output.out()
    if console.is_terminal:
        console.print(jobs_table(rows, width=console.width))
        return ExitCode.OK
    for job, waiting in rows:
        record = job.record
        head = f"{job.id}  {job.state:<15}  {words.since(record.created_ms):>8}"
        output.say(f"{head}  {words.printable(record.request.name)}  {detail(record, waiting)}".rstrip())
    return ExitCode.OK


def parse_state(text: str | None) -> JobState | None:
    """Read a state.

    Raises:
        CliError: there is no such state.
    """
    if text is None:
        return None
    try:
        return JobState(text.lower().replace("-", "_"))
    except ValueError:
        raise usage_error(f"--state {text}: no such state. Known: {', '.join(JobState)}.") from None


def events(job_id: str, *, follow: bool, as_json: bool) -> ExitCode:
    """Show a job's events, oldest first; with ``follow`` also those to come, until the job has ended."""
    with open_queue() as queue:
        job = queue.get(job_id)
        for event in _following(queue, job) if follow else job.events():
            if as_json:
                output.emit_line(event.model_dump(mode="json"))
            else:
                output.say(f"{event.time:%Y-%m-%d %H:%M:%S}Z  {event.kind:<15}  {event_line(event)}".rstrip())
    return ExitCode.OK


def _following(queue: FineTuneQueue, job: Job) -> Iterator[Event]:
    """Yield the events as they come. A Redis that does not answer is waited for, and told of once."""
    shown = 0
    trouble: str | None = None
    for seen in snapshots(queue, job, None):
        if seen.trouble is not None and trouble is None:
            output.note(words.still_trying(seen.trouble))
        trouble = seen.trouble
        yield from seen.events[shown:]
        shown = len(seen.events)


def job_json(job: Job, waiting: Waiting | None) -> dict[str, Any]:
    """Return a job, and why it waits, as JSON shows it."""
    return {**job.as_dict(), "waiting": None if waiting is None else waiting.as_dict()}
