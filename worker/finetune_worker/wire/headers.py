"""Header values that more than one reader needs."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER = 3600.0
"""Seconds: a server that asks for a longer pause than this is asked again after it."""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that Retry-After asks for (RFC 9110, 10.2.3: seconds or a date), capped; None if it asks for
    none, or cannot be read.

    A date is measured from the reply's own Date header, so that a wrong clock here does not matter.
    """
    text = headers.get("Retry-After", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        until = _date(text)
        if until is None:
            return None
        seconds = (until - (_date(headers.get("Date", "")) or datetime.now(UTC))).total_seconds()
    # "0" is what some servers say in every 503: taken for its word, it would end all backoff.
    return min(seconds, MAX_RETRY_AFTER) if seconds > 0.0 else None


def clock_skew(headers: Mapping[str, str], left: float, back: float) -> float | None:
    """Return by how many seconds, at least, this machine's clock is ahead of the server's (negative: behind it), by the
    reply's Date (RFC 9110, 6.6.1: whole seconds). 0.0 if the clocks may agree, None without a Date.

    ``left`` and ``back`` are when the request left and when its reply was here, in this machine's seconds since 1970:
    the server wrote its Date between them.
    """
    date = _date(headers.get("Date", ""))
    if date is None:
        return None
    said = date.timestamp()
    return max(left - (said + 1), 0.0) + min(back - said, 0.0)


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
