"""What became of a job's events on their way to its sinks: ``deliveries`` and ``redeliver``."""

from datetime import UTC, datetime

from finetune_queue.cli import output, words
from finetune_queue.cli.output import ExitCode
from finetune_queue.cli.session import open_queue
from finetune_queue.contract import parse_sink
from finetune_queue.store import SinkWait


def deliveries(job_id: str, *, as_json: bool) -> ExitCode:
    """Show what still waits, then the latest attempts, newest first."""
    with open_queue() as queue:
        attempts, waits = queue.deliveries(job_id), queue.undelivered(job_id)
    if as_json:
        output.emit([wait.as_dict() for wait in waits] + [attempt.as_dict() for attempt in attempts])
        return ExitCode.OK
    for wait in waits:
        output.say(_waiting_line(wait))
    if not attempts and not waits:
        output.say("Nothing has been delivered yet, or the job has no sinks.")
    for attempt in attempts:
        status = f" ({attempt.status})" if attempt.status is not None else ""
        said = f": {words.printable(attempt.detail)}" if attempt.detail else ""
        number = attempt.event_id.rpartition("-")[2]
        output.say(
            f"{words.since(attempt.at_ms)} ago  event {number} {attempt.outcome}{status} "
            f"to {words.printable(attempt.sink)} [{attempt.sink_id}] in {attempt.took_ms} ms{said}"
        )
    return ExitCode.OK


def _waiting_line(wait: SinkWait) -> str:
    if wait.events is None:
        what = "Events wait"
    else:
        what = f"{words.count(wait.events, 'event')} {'waits' if wait.events == 1 else 'wait'}"
    sink = words.printable(wait.sink)
    name = sink if wait.sink_id is None else f"{sink} [{wait.sink_id}]"
    if wait.next_ms is None:
        return f"{what} for {name}, not yet picked up by a worker"
    seconds = wait.next_ms / 1000 - datetime.now(UTC).timestamp()
    when = "now" if seconds <= 0 else f"in {words.duration(seconds)}"
    why = words.printable(wait.reason).removeprefix(f"{sink} ")
    return f"{what} for {name}, next try {when}{f': {why}' if why else ''}"


def redeliver(job_id: str, *, sink: str | None, as_json: bool) -> ExitCode:
    """Send a job's events again."""
    if sink is not None and "://" in sink:
        try:
            parse_sink(sink)
        except ValueError as error:
            raise output.usage_error(f"--sink {error}.") from None
    with open_queue() as queue:
        job = queue.get(job_id)
        count = queue.redeliver(job.id, sink=sink)
    if as_json:
        output.emit({"job_id": job.id, "sinks": count})
    else:
        output.say(f"All events of job {job.id} are being sent again, to {words.count(count, 'sink')}.")
    return ExitCode.OK
