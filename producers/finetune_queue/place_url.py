"""How a place to store things is written: `file://` with a path, or the bucket and key of an object store.

Not part of the storage package, as settings must not import that: they check the URL before a worker starts.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

OBJECT_SCHEMES = ("s3", "gs", "az")
FORMS = "file:///absolute/folder, file://./relative/folder, s3://bucket/prefix, gs:// or az://"


@dataclass(frozen=True, slots=True)
class ObjectAddress:
    """A bucket and a key (or a prefix, or nothing) in an object store."""

    scheme: str
    bucket: str
    key: str

    @property
    def path(self) -> str:
        """Bucket and key joined, as fsspec takes them."""
        return f"{self.bucket}/{self.key}" if self.key else self.bucket


def read_place(url: str) -> Path | ObjectAddress:
    """Return the local path as it is written, or the object address.

    Raises:
        ValueError: another scheme, no bucket, or credentials inside the URL. The message is a sentence without them.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise ValueError("The place must be given as a URL.")
    if re.search(r"[\x00-\x1f\x7f-\x9f]", url):  # no request could name a dataset there
        raise ValueError("A place's URL holds no line breaks or other control characters.")
    if scheme == "file":
        return _local(rest)
    if scheme not in OBJECT_SCHEMES:
        raise ValueError(f"{scheme}:// is not a place to store things.")
    bucket, _, key = rest.partition("/")
    if not bucket or "@" in bucket or "::" in rest:
        # fsspec would take "::" for a second address behind the first.
        raise ValueError(f"The {scheme}:// URL has no plain bucket name; credentials do not belong in it.")
    return ObjectAddress(scheme, bucket, key.strip("/"))


def _local(rest: str) -> Path:
    rest = unquote(rest.removeprefix("localhost")) if rest.startswith("localhost/") else unquote(rest)
    if not rest.startswith(("/", "./", "../")) or "\0" in rest:
        raise ValueError("A file:// URL needs a path that starts with / or ./ after the two slashes.")
    return Path(rest)
