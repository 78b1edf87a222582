"""URLs that may be shown, and URLs that may be called."""

import re
from urllib.parse import urlsplit

from finetune_queue.loopback import is_loopback

_URL = re.compile(r"(?i)\b(https?://)([^\s\"'<>?#]*)([?#][^\s\"'<>]*)?")
_PARAMETER = re.compile(r"(?i)\b(x-(?:amz|goog)-[a-z-]+|signature)=[^\s\"'<>&]+")


class UnsafeUrlError(ValueError):
    """A URL that this worker does not call. The message is a sentence without the URL's query."""


def safe_url(url: str) -> str:
    """Return ``url`` without its query, fragment and user name: a presigned URL's signature is a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(unreadable URL)"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def without_queries(text: str) -> str:
    """Return ``text`` with the query and user name cut out of every URL in it, and signatures out of the rest."""
    text = _URL.sub(lambda found: found[1] + found[2].rpartition("@")[2] + ("?..." if found[3] else ""), text)
    return _PARAMETER.sub(lambda found: f"{found[1]}=...", text)


def require_callable(url: str, *, allow_loopback: bool) -> None:
    """Refuse a provider's URL that is not https; on loopback (the sandbox) plain http passes if that is allowed.

    Raises:
        UnsafeUrlError: says why.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UnsafeUrlError("The URL cannot be read.") from None
    shown = safe_url(url)
    if parts.scheme not in {"http", "https"} or not host or port == 0:
        raise UnsafeUrlError(f"{shown} is not an http(s) URL.")
    if parts.username is not None or parts.password is not None:
        raise UnsafeUrlError(f"{shown} has a user name in it.")
    if is_loopback(host):
        if not allow_loopback:
            raise UnsafeUrlError(f"{shown} is on this machine, which is allowed only with the sandbox.")
    elif parts.scheme != "https":
        raise UnsafeUrlError(f"{shown} is not https.")
