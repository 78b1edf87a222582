"""Sinks: the downstream queues that get a job's events, named by URL.

| URL | what gets the event |
|---|---|
| ``celery://QUEUE/task.name`` | a Celery task on this service's broker, with the event as its one argument |
| ``stream://NAME`` | the stream ``NAME`` on this service's Redis, field ``event`` |
| ``list://NAME`` | the list ``NAME`` on this service's Redis, pushed on the left |
| ``https://HOST/PATH`` | an HTTP POST, signed by Standard Webhooks |
| ``amqp://HOST/VHOST?queue=NAME`` | a queue on any broker that kombu speaks; with ``&task=NAME`` as a Celery task |

``?events=succeeded,failed`` selects kinds of events; without it a sink gets every change of state, and with
``?events=all`` Segmind's own status changes and changes of access too. A URL may hold a password or an unguessable
path, so only :attr:`Sink.shown` is for people.
"""

import hashlib
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

from finetune_queue.contract.kinds import EventType


class SinkKind(StrEnum):
    """How a sink is spoken to."""

    CELERY = "celery"
    STREAM = "stream"
    LIST = "list"
    WEB = "web"
    BROKER = "broker"


BROKERS = frozenset(
    {
        *("amqp", "amqps", "redis", "rediss", "sqs", "confluentkafka", "mongodb", "qpid", "pgmq"),
        *("azureservicebus", "azurestoragequeues", "gcpubsub", "zookeeper", "consul", "etcd"),
    }
)
"""kombu's transports over a network; each but the first four needs its driver installed on the workers."""

USUAL_PORTS = {"http": 80, "https": 443, "amqp": 5672, "amqps": 5671, "redis": 6379, "rediss": 6379}
"""The port that a URL of such a scheme means when it names none."""

STATE_CHANGES = frozenset(EventType) - {EventType.PROGRESS, EventType.ACCESS}
"""The kinds of events that a sink gets whose URL selects none."""

RESERVED_QUEUES = frozenset(
    {
        *("finetune", "finetune.transfer", "celeryev", "unacked", "unacked_index", "unacked_mutex"),
        *("accounts", "api", "counters", "dead", "deadlines", "events", "jobs", "lines", "outbox", "owners", "reached"),
        *("sink_kinds", "wake", "wake_outbox", "workers", "write_check"),
    }
)
"""Names that the queue of a sink cannot have: those of our queues, of kombu's keys and of the store's. This list must
not grow, as an earlier version may have accepted the name: so a new key of the store gets a name with a colon."""

_KINDS = frozenset(EventType)
_LANES = 4
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,199}")
_QUEUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
_TASK = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,199}")
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_FORMS = (
    "celery://QUEUE/task.name, stream://NAME, list://NAME, https://HOST/PATH or a broker such as "
    "amqp://HOST/VHOST?queue=NAME"
)


@dataclass(frozen=True, slots=True)
class Sink:
    """A sink, read from its URL. ``url`` is as given, ``target`` without the parameters that are for this service; both
    may hold a secret, ``shown`` holds none. ``name`` is the queue, stream or list, ``task`` the Celery task. Sinks of
    one ``origin`` fail together."""

    url: str = field(repr=False)
    kind: SinkKind
    target: str = field(repr=False)
    origin: str
    shown: str
    wanted: frozenset[EventType]
    name: str = ""
    task: str = ""

    @property
    def id(self) -> str:
        """A stable name that tells nothing of the URL."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:12]

    def wants(self, kind: str) -> bool:
        """Tell whether the sink gets events of this kind. A kind that only a newer version knows may be a change of
        state, so every sink that wants all of these gets it."""
        return kind in self.wanted or (kind not in _KINDS and self.wanted >= STATE_CHANGES)

    def line(self, subject: str) -> str:
        """Return the line that a job's events to this sink wait in: in order, one at a time.

        A sink over the network has a few lines, so that one slow reply does not hold up all of its jobs. The job's id
        chooses the line, and not the URL's path: there may be a path for each job, and a worker of another version must
        find the job in the same line.
        """
        if self.kind in {SinkKind.WEB, SinkKind.BROKER}:
            return f"{self.origin}#{zlib.crc32(subject.encode()) % _LANES}"
        return self.origin


@lru_cache(maxsize=4096)
def parse_sink(url: str) -> Sink:
    """Read a sink's URL.

    Raises:
        ValueError: with a sentence that does not quote the URL.
    """
    if not url.isascii() or re.search(r"[\x00-\x20\x7f\\]", url):
        raise ValueError("should hold no spaces, control characters or letters outside ASCII; percent-encode them")
    try:
        parts = urlsplit(url)
        port = parts.port if parts.scheme not in {"stream", "list", "celery"} else None
    except ValueError:
        raise ValueError("cannot be read as a URL (are special characters in it percent-encoded?)") from None
    if parts.fragment:
        raise ValueError("should have no #fragment")
    ours, rest = _queries(parts)
    match parts.scheme:
        case "celery":
            return _celery(url, parts, ours, rest)
        case "stream" | "list":
            return _local(url, parts, ours, rest)
        case "https" | "http":
            return _web(url, parts, port, ours, rest)
        case scheme if scheme in BROKERS:
            return _broker(url, parts, port, ours, rest)
        case "":
            raise ValueError(f"is not a URL. Use {_FORMS}")
        case _:
            raise ValueError(f"is not a known kind of sink. Use {_FORMS}")


def parse_sinks(urls: Iterable[str]) -> tuple[Sink, ...]:
    """Read several sinks; what is named twice is there once.

    Raises:
        ValueError: see :func:`parse_sink`.
    """
    return tuple({sink.id: sink for sink in map(parse_sink, urls)}.values())


def allowed(sink: Sink, rules: Iterable[str]) -> bool:
    """Tell whether a request may name this sink: a rule is a scheme (``https://``), or with a host, queue or name."""
    rules = tuple(rules)
    return f"{sink.origin.partition('://')[0]}://" in rules or named(sink, rules)


def named(sink: Sink, rules: Iterable[str]) -> bool:
    """Tell whether a rule names the sink's own host, queue or name, and not only its scheme."""
    match sink.kind:
        case SinkKind.CELERY:
            return f"celery://{sink.name}" in rules
        case SinkKind.BROKER | SinkKind.WEB:
            return plain_origin(sink.origin) in map(plain_origin, rules)
        case _:
            return sink.origin in rules


def plain_origin(url: str) -> str:
    """Return the scheme, host and port of a URL, without the scheme's usual port: equal for all ways to write a place.
    A URL that cannot be taken apart like this, such as ``stream://a:b``, is returned as it is."""
    try:
        parts = urlsplit(url)
        port = None if parts.port == USUAL_PORTS.get(parts.scheme) else parts.port
    except ValueError:
        return url
    return f"{parts.scheme}://{_netloc(parts.hostname or '', port)}"


def _queries(parts: SplitResult) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Split the query into the parameters for this service and those that belong to the sink."""
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    names = {"events"} if parts.scheme in {"http", "https"} else {"events", "queue", "task"}
    ours = [(name, value) for name, value in pairs if name in names]
    if len(dict(ours)) != len(ours):
        raise ValueError("names events, queue or task twice")
    return dict(ours), [pair for pair in pairs if pair[0] not in names]


def _wanted(ours: dict[str, str]) -> frozenset[EventType]:
    if "events" not in ours:
        return STATE_CHANGES
    if ours["events"] == "all":
        return frozenset(EventType)
    try:
        return frozenset(EventType(word.strip()) for word in ours["events"].split(","))
    except ValueError:
        raise ValueError(f"events= should be 'all', or some of {', '.join(EventType)} separated by commas") from None


def _celery(url: str, parts: SplitResult, ours: dict[str, str], rest: list[tuple[str, str]]) -> Sink:
    queue, task = parts.netloc, parts.path.removeprefix("/")
    if rest or ours.keys() - {"events"} or not _QUEUE.fullmatch(queue) or not _TASK.fullmatch(task):
        raise ValueError("should be celery://QUEUE/task.name, with only events= in its query")
    if queue in RESERVED_QUEUES or task.startswith("finetune."):
        raise ValueError("should name a queue and task of your own: this one belongs to finetune-queue")
    origin = f"celery://{queue}/{task}"
    return Sink(url, SinkKind.CELERY, origin, origin, url, _wanted(ours), queue, task)


def _local(url: str, parts: SplitResult, ours: dict[str, str], rest: list[tuple[str, str]]) -> Sink:
    name = parts.netloc + parts.path
    if rest or ours.keys() - {"events"} or not _NAME.fullmatch(name):
        raise ValueError(
            f"should be {parts.scheme}://NAME, of letters, digits and _ . : / -, with only events= in its query"
        )
    origin = f"{parts.scheme}://{name}"
    return Sink(url, SinkKind(parts.scheme), origin, origin, url, _wanted(ours), name)


def _web(url: str, parts: SplitResult, port: int | None, ours: dict[str, str], rest: list[tuple[str, str]]) -> Sink:
    host = parts.hostname or ""
    if not _HOST.fullmatch(host):
        raise ValueError("names no host")
    if "@" in parts.netloc:
        raise ValueError("should hold no user name or password: each delivery is signed instead")
    # Left as it is unless something of ours has to go: the receiver may care for its spelling.
    query = urlencode(rest) if ours else parts.query
    origin = f"{parts.scheme}://{_netloc(host, port)}"
    path = "/" if parts.path.strip("/") == "" else "/…"  # it may be what keeps others out
    return Sink(
        url,
        SinkKind.WEB,
        urlunsplit((parts.scheme, parts.netloc, parts.path or "/", query, "")),
        origin,
        f"{origin}{path}",
        _wanted(ours),
    )


def _broker(url: str, parts: SplitResult, port: int | None, ours: dict[str, str], rest: list[tuple[str, str]]) -> Sink:
    queue, task = ours.get("queue", ""), ours.get("task", "")
    if not queue or len(queue.encode()) > 255:
        raise ValueError(f"should name a queue: {parts.scheme}://HOST/PATH?queue=NAME")
    if "task" in ours and not _TASK.fullmatch(task):
        raise ValueError("task= should be the name of a Celery task")
    if parts.hostname and not _HOST.fullmatch(parts.hostname):
        raise ValueError("names no host")
    if ";" in parts.netloc + parts.path:  # at which kombu divides what it takes for several URLs
        raise ValueError("should be one URL; write a ';' in it as %3B")
    origin = f"{parts.scheme}://{_netloc(parts.hostname or '', port)}{parts.path}"
    shown = f"{origin}?{urlencode({'queue': queue, **({'task': task} if task else {})})}"
    target = urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(rest), ""))
    return Sink(url, SinkKind.BROKER, target, origin, shown, _wanted(ours), queue, task)


def _netloc(host: str, port: int | None) -> str:
    host = f"[{host}]" if ":" in host else host
    return host if port is None else f"{host}:{port}"
