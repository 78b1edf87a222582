"""What became of a job's events on their way to its sinks: ``deliveries`` and ``redeliver``."""

from finetune_queue.cli import output, words
from finetune_queue.cli.output import ExitCode
from finetune_queue.cli.session import open_queue
from finetune_queue.contract import parse_sink


def deliveries(job_id: str, *, as_json: bool) -> ExitCode:
    """Show the latest attempts, newest first."""
    with open_queue() as queue:
        attempts = queue.deliveries(job_id)
    if as_json:
        output.emit([attempt.as_dict() for attempt in attempts])
        return ExitCode.OK
    if not attempts:
        output.say("Nothing was delivered yet, or the job has no sinks.")
    for attempt in attempts:
        status = f" ({attempt.status})" if attempt.status is not None else ""
        said = f": {words.printable(attempt.detail)}" if attempt.detail else ""
        number = attempt.event_id.rpartition("-")[2]
        output.say(
            f"{words.since(attempt.at_ms)} ago  event {number} {attempt.outcome}{status} "
            f"to {words.printable(attempt.sink)} [{attempt.sink_id}] in {attempt.took_ms} ms{said}"
        )
    return ExitCode.OK


def redeliver(job_id: str, *, sink: str | None, as_json: bool) -> ExitCode:
    """Send a job's events again."""
    if sink is not None and "://" in sink:
        try:
            parse_sink(sink)
        except ValueError as error:
            raise output.usage_error(f"--sink {error}.") from None
    with open_queue() as queue:
        count = queue.redeliver(job_id, sink=sink)
    if as_json:
        output.emit({"job_id": job_id, "sinks": count})
    else:
        output.say(f"All events of job {job_id} are sent again, to {words.count(count, 'sink')}.")
    return ExitCode.OK
