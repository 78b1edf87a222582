"""Which place a URL names: `file://` with an absolute or relative path, or the bucket and key of an object store."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from finetune_queue.storage.errors import BadUrlError

OBJECT_SCHEMES = ("s3", "gs", "az")
_FORMS = "Use file:///absolute/folder, file://./relative/folder, s3://bucket/prefix, gs:// or az://."


@dataclass(frozen=True, slots=True)
class ObjectAddress:
    """A bucket and a key (or a prefix, or nothing) in an object store."""

    scheme: str
    bucket: str
    key: str

    @property
    def path(self) -> str:
        """As fsspec takes it."""
        return f"{self.bucket}/{self.key}" if self.key else self.bucket


def parse_url(url: str) -> Path | ObjectAddress:
    """Return the local path, made absolute, or the object address.

    Raises:
        BadUrlError: another scheme, no bucket, or credentials inside the URL.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise BadUrlError("A place is given as a URL.", _FORMS)
    if scheme == "file":
        return _local(rest)
    if scheme not in OBJECT_SCHEMES:
        raise BadUrlError(f"{scheme}:// is not a place to store things.", _FORMS)
    bucket, _, key = rest.partition("/")
    if not bucket or "@" in bucket or "::" in rest:
        # fsspec would take "::" for a second address behind the first.
        raise BadUrlError(f"The {scheme}:// URL has no plain bucket name; credentials do not belong into it.", _FORMS)
    return ObjectAddress(scheme, bucket, key.strip("/"))


def _local(rest: str) -> Path:
    rest = unquote(rest.removeprefix("localhost")) if rest.startswith("localhost/") else unquote(rest)
    if not rest.startswith(("/", "./", "../")) or "\0" in rest:
        raise BadUrlError("A file:// URL needs a path that starts with / or ./ after the two slashes.", _FORMS)
    return Path(rest).absolute()
