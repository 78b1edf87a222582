"""How times, waiting and reports are said in a line of text."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from finetune_queue.contract import JobError, WaitReason
from finetune_queue.plain_words import byte_size, escaped

if TYPE_CHECKING:
    from finetune_queue.sdk import Waiting


def printable(text: object) -> str:
    """Return a text on one line that cannot steer a terminal: names and messages come from callers and servers."""
    return escaped(" ".join(str(text).split()))


def duration(seconds: float) -> str:
    """Return a time as a person says it: ``4.2 s``, ``42 s``, ``12 min``, ``3 h 5 min``, ``2 days``."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes and hours < 10 else f"{hours} h"
    return f"{round(hours / 24)} days"


def since(milliseconds: int) -> str:
    """Return how long ago a time (ms, of the Redis server's clock) was, by this machine's clock."""
    return duration(datetime.now(UTC).timestamp() - milliseconds / 1000)


def place(url: str) -> str:
    """Return a ``file://`` URL as a plain path, which a shell can use; any other URL as it is."""
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in {"", "."}:  # file://./var is a setting's way to a relative path
        return escaped(url)
    return escaped(unquote(f"{parts.netloc}{parts.path}"))


def near(url: str) -> str:
    """Return a file's URL as a path: on a terminal relative to the current folder, if the file is below that. Not in a
    log, whose reader does not know the folder; nor in the root folder, where it would look like a broken path."""
    path = place(url)
    if not sys.stdout.isatty():
        return path
    try:
        folder = Path.cwd()
        return path if folder == folder.parent else str(Path(path).relative_to(folder))
    except (ValueError, FileNotFoundError):  # elsewhere, or the current folder was removed
        return path


def report_line(report: dict[str, Any]) -> str:
    """Return a dataset report in a few words; a report of another version than this one may lack some."""
    parts = []
    if "images" in report:
        parts.append(count(report["images"], "image"))
    if report.get("captions"):
        parts.append(count(report["captions"], "caption"))
    if report.get("bytes"):
        parts.append(byte_size(int(report["bytes"])))
    severities = [finding.get("severity") for finding in report.get("findings") or []]
    parts += [
        count(severities.count(severity), severity) for severity in ("error", "warning") if severity in severities
    ]
    return ", ".join(parts)


def report_warnings(report: dict[str, Any]) -> list[str]:
    """Return what a dataset report warns of, one line for each kind of warning."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for each in report.get("findings") or []:
        if each.get("severity") == "warning":
            kinds.setdefault(str(each.get("code")), []).append(each)
    return [_warning(same, (report.get("omitted") or {}).get(code, 0)) for code, same in kinds.items()]


def _warning(same: list[dict[str, Any]], omitted: int) -> str:
    first, more = same[0], len(same) - 1 + omitted
    place = f"{first['file']}: " if first.get("file") else ""
    others = f" ({more} more like this)" if more else ""
    return printable(f"{place}{first.get('message', '')}{others} {first.get('fix', '')}")


def count(number: int, what: str) -> str:
    """Return how many of something there are, ``what`` being the word for one: ``1 job``, ``2,000 jobs``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def waiting_line(waiting: "Waiting", error: JobError | None) -> str:
    """Say why a job is not moving, how many are ahead of it, how long that may take and after which error."""
    if waiting.unserved:
        return NO_KEY
    reason = WaitReason.PAUSED if waiting.pause_reason else waiting.reason  # also of what waits for Segmind
    text = _STOPPED if waiting.submits_stopped else _REASONS[reason]
    if waiting.reason is WaitReason.PAUSED and waiting.estimate is None:
        text += f" {TESTED}"
    if waiting.pause_reason:
        text += f": {printable(waiting.pause_reason).rstrip('.')}"
    if waiting.ahead:
        text += f", {waiting.ahead} ahead"
    if waiting.estimate is not None and waiting.estimate >= 1:
        text += f", about {duration(waiting.estimate)}"
    if waiting.reason is WaitReason.BACKOFF and error is not None:
        text += f", after: {printable(error.message)}"
    return text


def still_trying(why: str) -> str:
    """Say that a look at the queue failed, and is made again."""
    return f"{printable(why)} Still trying."


NO_WORKER = "no worker is running: it waits until one is started"
"""Said of a job that no worker is there to go on with."""

NO_WORKERS = "No worker is running: jobs wait until one is started."
"""Said beside a list of jobs."""

NO_KEY = "no running worker has its account's key: add the account to SEGMIND_ACCOUNTS again, or cancel the job"
"""Said of a job whose account was taken out of the workers' settings, or renamed there."""

TESTED = "while one call tests it"
"""For how long an account stays paused once its pause is over: until one call has shown that Segmind is well."""

_STOPPED = "the account's submits are stopped (finetune account resume)"

_REASONS = {
    WaitReason.API_SLOT: "waiting for an API call within the rate limit",
    WaitReason.TRANSFER: "waiting for a turn to transfer files",
    WaitReason.BACKOFF: "waiting for the next try",
    WaitReason.PROVIDER: "waiting for Segmind",
    WaitReason.SPENDING: "the account has no submits left for today (UTC)",
    WaitReason.TRAININGS: "the account has as many trainings in flight as allowed",
    WaitReason.PAUSED: "the account is paused",
    WaitReason.START: "waiting for the time that its message set",
    WaitReason.WORKER: "no worker has picked it up yet",
}
