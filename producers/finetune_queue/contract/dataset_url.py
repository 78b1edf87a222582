"""The URL of a dataset: which URLs are accepted, which of these name a dataset, and the same in JSON Schema."""

import re
from urllib.parse import urlsplit

from pydantic.config import JsonDict

CONTROL = r"\x00-\x1f\x7f-\x9f"
"""The control characters, within brackets."""

_AUTHORITY = r'[!-"$-.0->@-Z^-~]*'  # without brackets, as IPv6 addresses are not accepted
_HTTP, _FILE = "[hH][tT][tT][pP][sS]?", "[fF][iI][lL][eE]"  # a scheme has no case, and JSON Schema no flag for that
_OBJECT = "[sS]3|[gG][sS]|[aA][zZ]"
_ENCODED, _AS_IT_IS = r"[!-\[\]-~]*", rf"[^{CONTROL}]*"
DATASET_URL = rf"^(({_HTTP}|{_FILE})://{_AUTHORITY}([/?#]{_ENCODED})?|({_OBJECT})://{_AUTHORITY}(/{_AS_IT_IS})?)$"
"""Matches the URL of a dataset. URLs of http and file are percent-encoded (RFC 3986, 8089). The key of an object is
written as it is: no store's tools encode it, and `%20` may be part of a key."""

WHOLE_DATASET_URL = (
    rf'^({_HTTP}://[!-"$-.0-9;->A-Z^-~]{_AUTHORITY}([/?#]{_ENCODED})?'
    rf"|{_FILE}://(localhost|[.]|[.][.])?/{_ENCODED}"
    rf'|({_OBJECT})://[!-"$-.0->@-Z^-~]{_AUTHORITY}/+[^/{CONTROL}]{_AS_IT_IS})$'
)
"""Matches a URL that lacks nothing: it has a host, an absolute path, or a bucket and a key. See ``missing_part``."""

_URL_BEGINS = f"^({_HTTP}|{_FILE}|{_OBJECT})://"

_PASSWORD: JsonDict = {"pattern": "^[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*@"}
DATASET_SCHEMA: JsonDict = {
    "not": {"anyOf": [_PASSWORD, {"pattern": f"[{CONTROL}]"}]},
    "if": {"pattern": _URL_BEGINS},
    "then": {"pattern": DATASET_URL},
}
"""The rules of ``check_dataset``, as far as JSON Schema can express them."""


def is_url(dataset: str) -> bool:
    """Tell whether a dataset is a URL, and not the path of a file or folder."""
    return re.match(_URL_BEGINS, dataset) is not None


def check_dataset(dataset: str) -> str:
    """Check a dataset's URL or path; return a URL with its scheme and host in lower case, so that one dataset has one
    address, also in Segmind's list.

    Raises:
        ValueError: it begins like a URL but is not one that can be used, or it holds a user name or password, which
            jobs and events would show. The sentence does not quote the URL, as the library's would.
    """
    if re.search(f"[{CONTROL}]", dataset):
        raise ValueError("should hold no line breaks or other control characters")
    try:
        parts = urlsplit(dataset)
    except ValueError:
        raise ValueError("cannot be read as a URL (are special characters in it percent-encoded?)") from None
    if parts.scheme and "@" in parts.netloc:
        raise ValueError("should hold no user name or password: leave them out, or use a signed link")
    if not is_url(dataset):
        return dataset
    if parts.scheme in {"http", "https"} and "[" in parts.netloc:
        raise ValueError("should name its host: IPv6 addresses are not accepted")
    if parts.scheme in {"http", "https"} and not parts.netloc.isascii():
        raise ValueError("should have its host name in ASCII (in Punycode, like xn--bcher-kva.example)")
    if not re.match(DATASET_URL, dataset):
        raise ValueError("cannot be read as a URL (are special characters in it percent-encoded?)")
    place = dataset[len(parts.scheme) :]
    if parts.scheme in {"http", "https"}:
        place = place.replace(parts.netloc, parts.netloc.lower(), 1)
    return parts.scheme + place


def missing_part(dataset: str) -> str | None:
    """Say what a URL lacks to name a dataset, such as a host; None for a whole URL, or a path. The SDK and the gateway
    refuse such a request, as its job could only fail. It is no rule of the request itself, so that raw messages and
    stored jobs with such a URL are still read."""
    if not is_url(dataset) or re.match(WHOLE_DATASET_URL, dataset):
        return None
    scheme, _, rest = dataset.partition("://")
    match scheme.lower():
        case "http" | "https":
            return "should name a host, like https://example.com/faces.zip"
        case "file":
            return "should begin with file:///: a worker reads the files of its own machine"
        case _ if not rest.partition("/")[0]:
            return f"should name a bucket, like {scheme}://bucket/faces.zip"
        case _:
            return "is a bucket, not a file in it: add the name of the ZIP"
