"""What an operator decides: what became of a submit of unknown outcome, and what to do with dead letters."""

from collections.abc import Iterable
from typing import Any

from finetune_queue.cli import output, words
from finetune_queue.cli.output import ExitCode
from finetune_queue.cli.session import open_queue, quiet_logs
from finetune_queue.contract.job import iso_time
from finetune_queue.errors import UnknownLetterError
from finetune_queue.redaction import redact_text
from finetune_queue.replaying import DeadLetter, DeadLetterBox
from finetune_queue.settings import load_settings
from finetune_queue.store import LostDelivery


def resolve(job_id: str, *, adopt: str | None, resubmit: bool, as_json: bool) -> ExitCode:
    """Say what became of a job's submit, so that it goes on."""
    if (adopt is None) is not resubmit:
        raise output.usage_error("Say either --adopt ID or --resubmit.")
    if adopt is not None and not adopt.strip():  # as by a shell's variable that is not set
        raise output.usage_error("The ID of --adopt is empty. Name a training, or say --resubmit.")
    with open_queue() as queue:
        job = queue.resolve(job_id, adopt=adopt, resubmit=resubmit)
    if as_json:
        output.emit(job.as_dict())
    else:
        if adopt is None:
            output.say(f"Job {job.id} will be submitted again, and charged again.")
        else:
            named = f"A worker looks at training {job.record.adopting}"
            output.say(f"{named}; if it can be job {job.id}'s, the job goes on with it.")
        output.say(f"Follow it: {output.program()} watch {job.id}")
    return ExitCode.OK


def switch_submits(account: str, *, stopped: bool, as_json: bool) -> ExitCode:
    """Stop an account's paid submits at once, for every worker, or let them go on."""
    with open_queue() as queue:
        queue.stop_submits(account, stopped=stopped)
    if as_json:
        output.emit({"account": account, "submits_stopped": stopped})
    elif stopped:
        output.say(f"Account {account}'s submits are stopped; its jobs wait, trainings go on.")
        output.say(f"To resume them: {output.program()} account resume {account}")
    else:
        output.say(f"Account {account}'s submits are resumed.")
    return ExitCode.OK


def list_dead(*, limit: int, as_json: bool) -> ExitCode:
    """Show what was set aside, newest first."""
    with _open_box() as box:
        letters = box.newest(limit)
    if as_json:
        output.emit([_as_dict(letter) for letter in letters])
        return ExitCode.OK
    if not letters:
        output.note("Nothing was set aside.")
    for letter in letters:
        said = "; ".join([letter.reason, *_problems(letter)])
        output.say(f"{letter.id}  {words.since(letter.at_ms)} ago  {_subject(letter)}: {words.printable(said)}")
    return ExitCode.OK


def replay(letter_ids: Iterable[str], *, as_json: bool) -> ExitCode:
    """Send dead letters again. One that is not there, as it was sent before, stops none of the others; the first such
    gives the exit code."""
    code = ExitCode.OK
    with _open_box() as box:
        for letter_id in letter_ids:
            try:
                letter = box.replay(letter_id)
            except UnknownLetterError as error:
                said = output.refused(error, as_json=as_json)
                code = code or said
                continue
            if as_json:
                output.emit_line(_as_dict(letter))
            else:
                output.say(f"{letter.id} was sent again: {_subject(letter)}.")
    return code


def _open_box() -> DeadLetterBox:
    settings = load_settings()
    quiet_logs(settings)
    return DeadLetterBox(settings)


def _subject(letter: DeadLetter) -> str:
    if isinstance(letter.content, LostDelivery):
        lost = letter.content
        return f"{words.count(len(lost.events), 'event')} of job {lost.job_id} for {lost.sink}"
    return f"message {words.printable(letter.message_id)}"


def _problems(letter: DeadLetter) -> list[str]:
    """Return the problems for people, without the sink, which is said before."""
    if not isinstance(letter.content, LostDelivery):
        return letter.problems
    sink = letter.content.sink
    return [each.removeprefix(f"{sink}: ").removeprefix(f"{sink} ") for each in letter.problems]


def _as_dict(letter: DeadLetter) -> dict[str, Any]:
    shown = {
        "id": letter.id,
        "at": iso_time(letter.at_ms),
        "kind": "delivery" if isinstance(letter.content, LostDelivery) else "message",
        "message_id": letter.message_id,
        "reason": letter.reason,
        "problems": letter.problems,
        "body": redact_text(letter.body),  # a request's URL may be signed
    }
    if isinstance(letter.content, LostDelivery):
        shown |= {"job_id": letter.content.job_id, "sink": letter.content.sink}
    return shown
