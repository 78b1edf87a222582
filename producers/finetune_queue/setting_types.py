"""The types of single settings: how each is written, checked and named in the settings table.

No check quotes the value it refuses: any of them may hold a secret, or one pasted into the wrong place.
"""

import base64
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    SecretStr,
    model_validator,
)

from finetune_queue.contract.json_text import RepeatedMemberError, read_json
from finetune_queue.contract.request import ACCOUNT_NAME, ACCOUNT_RULE
from finetune_queue.contract.sink import BROKERS, parse_sink
from finetune_queue.home_path import home_path
from finetune_queue.loopback import is_loopback
from finetune_queue.place_url import FORMS, OBJECT_SCHEMES, read_place

ANY_ORIGIN = "*"
"""Stands for every origin that has no signing secret of its own."""

_RATE = re.compile(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*")
_TLS_OPTION = re.compile(
    r"(ssl_ca_certs|ssl_ca_path|ssl_ca_data|ssl_certfile|ssl_keyfile|ssl_password|ssl_ciphers)=.+"
    r"|ssl_cert_reqs=(none|optional|required)|ssl_check_hostname=([tT]rue|[fF]alse)"
)
"""An option of a `rediss://` URL that redis-py and kombu read alike. Any other is unknown to one of the two, or kombu
passes it on as text where a number or a list is needed: jobs would be stored, and then Celery would fail."""


class RateLimit(BaseModel):
    """At most `calls` API calls in any window of `seconds`. Written "50/60"."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    calls: PositiveInt
    seconds: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        if isinstance(value, dict | RateLimit):
            return value
        found = _RATE.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise ValueError('should be calls/seconds, like "50/60" for 50 calls a minute')
        return {"calls": int(found[1]), "seconds": float(found[2])}

    def __str__(self) -> str:
        return f"{self.calls}/{self.seconds:g}"


# The free plan's limit (Segmind's page on rate limits): safe for every plan until the right one is set.
FREE_PLAN = RateLimit(calls=5, seconds=60)


def _check_api_key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value().strip()
    if len(text) < 8:
        raise ValueError("is too short to be an API key: under 8 characters")
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("holds a character that an HTTP header cannot carry (a stray space or line break?)")
    return SecretStr(text)


def _split(url: str) -> SplitResult:
    """Split a URL, and check its port. Errors do not quote parts of it, as the library's do: one may be a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("cannot be read as a URL (are special characters in it percent-encoded?)") from None
    if port == 0:
        raise ValueError("should not have port 0")
    return parts


def _check_base_url(url: str) -> str:
    parts = _split(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("should be a URL that starts with https://")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError("should start with https://: plain http would show the API key to the network")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("should hold no user name, query or fragment")
    return url.rstrip("/")


def _can_be_looked_up(host: str) -> bool:
    """Tell whether DNS can have this name. If a part is empty or too long, looking it up raises a UnicodeError, which
    no caller takes for a server that is out of reach."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:
        return False


def _check_redis_url(url: str) -> str:
    if "sentinel" in url.partition(":")[0].lower():  # before the rest: kombu writes several such URLs as one
        raise ValueError(
            "names Sentinel, which is not asked here: give one name, or a proxy, that leads to the primary "
            "(docs/decisions/0010-one-name-leads-to-the-primary.md)"
        )
    parts = _split(url)
    if "cluster" in parts.scheme:
        raise ValueError(
            "names a Redis Cluster, which Celery's Redis transport cannot use: give one primary or a managed endpoint"
        )
    if url.partition(":")[0] not in {"redis", "rediss", "unix"}:  # in lower case, as redis-py wants it
        raise ValueError("should start with redis://, rediss:// or unix://")
    if parts.scheme == "unix":
        if parts.hostname or not parts.path.strip("/") or not re.fullmatch(r"(db=[0-9]{1,5})?", parts.query):
            raise ValueError("should name a socket file, like unix:///run/redis.sock?db=0")
        return url
    if not _can_be_looked_up(parts.hostname or ""):
        raise ValueError("should name a host, like redis://localhost:6379/0")
    if not re.fullmatch(r"/?[0-9]{0,5}", parts.path):
        if "@" in parts.path:
            raise ValueError(
                "has an @ after its host: percent-encode the special characters of the password (@ as %40, / as %2F)"
            )
        raise ValueError("should end in a database number, like redis://localhost:6379/0")
    options = parts.query.split("&") if parts.query else []
    if options and not (parts.scheme == "rediss" and all(map(_TLS_OPTION.fullmatch, options))):
        raise ValueError(
            "should end in a database number, like redis://localhost:6379/0, and have no options but those of TLS in "
            "docs/settings.md, like rediss://HOST:6379/0?ssl_ca_certs=FILE"
        )
    return url


def _without_user(place: SplitResult) -> None:
    if place.username is not None:
        raise ValueError("should hold no user name or password: the storage's own environment variables carry them")


def _check_storage_url(url: str) -> str:
    _without_user(_split(url))
    try:
        read_place(url)
    except ValueError:
        raise ValueError(f"should be a URL that names a folder or bucket: {FORMS}") from None
    return url


def _check_bucket_urls(urls: tuple[str, ...]) -> tuple[str, ...]:
    for url in urls:
        parts = _split(url)
        if url.partition(":")[0] not in OBJECT_SCHEMES or not parts.netloc:  # in lower case, as datasets' URLs are
            raise ValueError("should be URLs of buckets or of prefixes in them, like s3://my-bucket/datasets")
        _without_user(parts)
    return urls


def _check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    if not all(re.fullmatch(r"[A-Za-z0-9._-]+", host) for host in hosts):
        raise ValueError("should be names of hosts alone, separated by spaces, like files.example.com")
    return hosts


def _split_words(value: object) -> object:
    return tuple(value.split()) if isinstance(value, str) else value


def _check_sinks(urls: tuple[str, ...]) -> tuple[str, ...]:
    for number, url in enumerate(urls, 1):
        try:
            parse_sink(url)
        except ValueError as error:
            raise ValueError(f"URL {number} {error}") from None
    return urls


def _lower_scheme(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    return f"{scheme.lower()}{mark}{rest}"


def _check_reply_to(rules: tuple[str, ...]) -> tuple[str, ...]:
    if rules == ("none",):
        return ()
    rules = tuple(map(_lower_scheme, rules))
    for rule in rules:
        parts = _split(rule) if rule.startswith(("http", *BROKERS)) else urlsplit(rule)
        if parts.scheme not in {*BROKERS, "http", "https", "celery", "stream", "list"} or "://" not in rule:
            raise ValueError(
                "should be `none`, or schemes like https:// or stream://, each perhaps with a host, queue or name"
            )
        if "@" in parts.netloc or parts.query or (parts.path and parts.scheme in {*BROKERS, "http", "https", "celery"}):
            raise ValueError("should hold no user name, path or query: a scheme, and a host, queue or name")
    return rules


def _read_json(text: str) -> Any:
    """Read JSON; errors do not hold the document, as the decoder's do: it has the API keys in it."""
    try:
        return read_json(text)
    except RepeatedMemberError:
        raise ValueError("has a name more than once") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise ValueError("is not readable JSON: nested too deeply") from None


def _parse_signing_secrets(value: object) -> object:
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("{"):
        return {ANY_ORIGIN: value.split()}
    found = _read_json(value)
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ValueError('should be a secret, or JSON like {"https://hooks.example.com": "whsec_..."}')
    return {name: text.split() for name, text in found.items()}


def _check_signing_secrets(secrets: dict[str, tuple[SecretStr, ...]]) -> dict[str, tuple[SecretStr, ...]]:
    for origin, values in secrets.items():
        if origin != ANY_ORIGIN and not re.fullmatch(r"https?://[^/@?#\s]+", origin):
            raise ValueError(f"should name origins like https://hooks.example.com, or {ANY_ORIGIN} for all others")
        for each in values:
            text = each.get_secret_value()
            try:
                key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
            except ValueError:
                key = b""
            if not text.startswith("whsec_") or not 24 <= len(key) <= 64:
                raise ValueError("should be whsec_ and the base64 of 24 to 64 bytes (Standard Webhooks)")
        if not values:
            raise ValueError("names an origin without a secret")
    return secrets


def _split_paths(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(home_path(part).absolute() for part in value.split(os.pathsep) if part.strip())


def _parse_object(value: object) -> object:
    """Read a JSON object whose keys are account or client names. The field's own type checks the values."""
    if isinstance(value, str):
        value = _read_json(value)
    if isinstance(value, dict) and not all(
        isinstance(name, str) and re.fullmatch(ACCOUNT_NAME, name) for name in value
    ):
        raise ValueError(f"has a name that {ACCOUNT_RULE}")
    return value


def _check_token_hash(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("should be a token's SHA-256 in hexadecimal, as `finetune gateway token NAME` prints it")
    return text


def _check_long_secret(secret: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]{32,}", secret.get_secret_value()):
        raise ValueError("should be 32 or more random characters without spaces, as `openssl rand -hex 32` prints")
    return secret


ApiKey = Annotated[SecretStr, AfterValidator(_check_api_key)]
DailyCap = Annotated[int, Field(ge=0)]


class AccountSettings(BaseModel):
    """One Segmind account: its key, its rate limit and the caps on what it may start."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    api_key: ApiKey
    rate_limit: RateLimit = FREE_PLAN
    max_training: PositiveInt | None = None
    """How many trainings may be in flight at once; None: no cap of ours."""
    max_submits_per_day: DailyCap | None = None
    """How many paid submits one day (UTC) may see; 0 stops them, None: no cap of ours."""
    max_transfers: PositiveInt | None = None
    """How many uploads and downloads may run at once over all workers, so that others have a share; None: any."""


@dataclass(frozen=True)
class Shown:
    """How the settings table and error messages name a type."""

    label: str


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), Shown("seconds")]
BaseUrl = Annotated[str, AfterValidator(_check_base_url), Shown("URL")]
RedisUrl = Annotated[str, AfterValidator(_check_redis_url), Shown("URL")]
Accounts = Annotated[dict[str, AccountSettings], BeforeValidator(_parse_object), Shown("JSON object")]
Folders = Annotated[tuple[Path, ...], BeforeValidator(_split_paths), Shown("folders")]
Words = Annotated[tuple[str, ...], BeforeValidator(_split_words), Shown("words separated by spaces")]
Hosts = Annotated[Words, AfterValidator(_check_hosts)]
BucketUrls = Annotated[
    tuple[str, ...],
    BeforeValidator(_split_words),
    AfterValidator(_check_bucket_urls),
    Shown("URLs separated by spaces"),
]
Sinks = Annotated[
    tuple[str, ...], BeforeValidator(_split_words), AfterValidator(_check_sinks), Shown("URLs separated by spaces")
]
ReplyTo = Annotated[
    tuple[str, ...], BeforeValidator(_split_words), AfterValidator(_check_reply_to), Shown("schemes and hosts")
]
SigningSecrets = Annotated[
    dict[str, tuple[SecretStr, ...]],
    BeforeValidator(_parse_signing_secrets),
    AfterValidator(_check_signing_secrets),
    Shown("whsec_... or JSON"),
]
Count = Annotated[PositiveInt, Shown("number")]
Port = Annotated[int, Field(ge=1, le=65535)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), Shown("fraction")]
TokenHashes = Annotated[
    dict[str, Annotated[str, AfterValidator(_check_token_hash)]], BeforeValidator(_parse_object), Shown("JSON object")
]
LongSecret = Annotated[SecretStr, AfterValidator(_check_long_secret)]
StorageUrl = Annotated[str, AfterValidator(_check_storage_url), Shown("URL")]
Upper = BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value)
Lower = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
