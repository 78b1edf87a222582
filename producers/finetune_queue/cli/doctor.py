"""``finetune doctor``: is everything there that a job needs, and if not, what to do."""

import json
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from finetune_queue import __version__
from finetune_queue.cli import output, words
from finetune_queue.cli.doctor_accounts import account_findings
from finetune_queue.cli.findings import Finding, Status, clock, show
from finetune_queue.cli.output import ExitCode
from finetune_queue.cli.session import quiet_logs
from finetune_queue.contract import Sink, SinkKind, parse_sinks
from finetune_queue.contract.sink import USUAL_PORTS
from finetune_queue.errors import QueueUnavailableError
from finetune_queue.messaging import QUEUE, Messenger, producer_app, stray_lists
from finetune_queue.plain_words import byte_size
from finetune_queue.settings import Settings, load_settings, missing_for_worker
from finetune_queue.storage import Place, StorageError
from finetune_queue.store import (
    AuthenticationError,
    RedisError,
    ResponseError,
    ServerFacts,
    SinkLines,
    Workers,
    clock_skew,
    connect,
    disk_trouble,
    noted_api,
    server_facts,
    server_problems,
)
from finetune_queue.store.workers import GONE

if TYPE_CHECKING:
    from redis import Redis

PING_SECONDS = 1.5
"""How long workers have to answer."""

NEARLY_FULL = 0.8
"""The share of its memory from which the server is nearly full, as for the alert FinetuneRedisFull."""

KNOCK_SECONDS = 3.0
"""How long a sink's host has to take a connection."""


def doctor(*, api: bool, as_json: bool) -> ExitCode:
    """Check everything that can be checked from here; 1 if something failed. Spends calls of the API only with ``api``.

    Raises:
        SettingsError: names every setting that is wrong; nothing else can be checked then.
    """
    settings = load_settings()
    quiet_logs(settings)
    found = []
    for finding in _findings(settings, api=api):
        found.append(finding)
        if not as_json:
            show(finding)
    failed = any(finding.status == "fail" for finding in found)
    if as_json:
        output.emit({"ok": not failed, "checks": [asdict(finding) for finding in found]})
    return ExitCode.FAILED if failed else ExitCode.OK


def _findings(settings: Settings, *, api: bool) -> Iterator[Finding]:
    yield from list(_unfit(settings)) or [Finding("settings", "ok", "all values are valid")]
    yield _api(settings)
    server = list(_server(settings))
    yield from server
    if _other_broker(settings):
        yield from _broker(settings)
    if server[0].status == "ok":
        yield from _read(settings, "data", _emptied)
        yield from _read(settings, "clock", _clock)
        answered, found = _workers(settings)
        yield from found
        yield from _read(settings, "versions", partial(_versions, answered))
        yield from _read(settings, "worker clocks", _worker_clocks)
        yield from _read(settings, "worker api", partial(_worker_api, settings))
        yield from _read(settings, "accounts", partial(account_findings, settings))
        yield from _read(settings, "sinks", _sinks)
        yield from _strays(settings)
    if api:
        from finetune_queue.cli.doctor_api import api_findings

        yield from api_findings(settings)
    yield from map(_knock, _remote(settings))
    yield _store("staging", "FINETUNE_STAGING_URL", settings.finetune_staging_url, needed=True)
    # Weights are written by workers; with a key in its settings this may be where one runs.
    yield _store("artifacts", "FINETUNE_ARTIFACT_URL", settings.finetune_artifact_url, needed=bool(settings.accounts))


def _unfit(settings: Settings) -> Iterator[Finding]:
    """Say why no gateway, or no worker, starts on these settings, whose values are valid one by one."""
    if nobody := settings.unknown_readers:
        said = f"FINETUNE_GATEWAY_READERS: there is no token for {words.printable(', '.join(nobody))}"
        action = "Correct the name, or make a token: finetune gateway token NAME. A gateway does not start until then."
        yield Finding("settings", "fail", said, action)
    if settings.accounts:  # with a key this may be where a worker runs
        for said in missing_for_worker(settings):
            yield Finding("settings", "fail", said, "Set it where workers run. One does not start until then.")


def _api(settings: Settings) -> Finding:
    kind = "on this machine, so a sandbox" if settings.segmind_is_loopback else "the real API: trainings are charged"
    keys = ", ".join(settings.accounts) or "none (a producer needs none, a worker does)"
    return Finding("segmind", "ok", f"{settings.segmind_base_url}, {kind}; keys for accounts: {keys}")


def _server(settings: Settings) -> Iterator[Finding]:
    where = _without_secrets(settings.finetune_redis_url)
    try:
        with connect(settings.finetune_redis_url) as client:
            facts = server_facts(client)
            trouble = disk_trouble(client)
    except (AuthenticationError, ResponseError) as error:
        message = f"{where} answers, and refuses: {words.printable(error)}"
        action = "Correct the user, password or database number in FINETUNE_REDIS_URL, or the user's permissions."
        yield Finding("redis", "fail", message, action)
        return
    except RedisError as error:
        message = f"{where} does not answer: {words.printable(error)}"
        action = "Start the server, or set FINETUNE_REDIS_URL to where it is."
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            action = "Name the authority that signed its certificate: `?ssl_ca_certs=FILE` in FINETUNE_REDIS_URL."
        yield Finding("redis", "fail", message, action)
        return
    problems = {problem.about: problem for problem in server_problems(facts)}
    well = {
        "redis": f"{facts.name} {facts.version}",
        "persistence": "the server keeps an append-only log",
        "eviction": "the server never evicts (noeviction)",
    }
    for about, message in well.items():
        place = f" at {where}" if about == "redis" else ""
        if about == "persistence" and trouble:
            said = f"the server refuses every write: {words.printable(trouble)}"
            action = "Check the server's disk, and whether a snapshot failed (docs/runbook.md, FinetuneRedisForgets)."
            yield Finding(about, "fail", said, f"{action} No job is lost.")
        elif problem := problems.get(about):
            status: Status = "fail" if problem.unfit else "warn"
            yield Finding(about, status, f"{problem.message}{place}", problem.action)
        else:
            yield Finding(about, "ok", f"{message}{place}")
    if settings.finetune_redis_replicas:
        yield _replicas(facts, settings.finetune_redis_replicas)
    yield _memory(facts)


def _broker(settings: Settings) -> Iterator[Finding]:
    """Say whether a broker that is another server is fit for one. If it is away, `workers` tells."""
    where = _without_secrets(_broker_url(settings))
    with suppress(RedisError), connect(_broker_url(settings)) as client:
        facts = server_facts(client)
        for problem in (problems := list(server_problems(facts, holds_jobs=False))):
            status: Status = "fail" if problem.unfit else "warn"
            yield Finding("broker", status, f"{problem.message} at {where}", problem.action)
        if not problems:
            yield Finding("broker", "ok", f"{facts.name} {facts.version} at {where}")


def _replicas(facts: ServerFacts, wanted: int) -> Finding:
    """Say whether there can be as many replicas' confirmations as a submit waits for."""
    if facts.append_only and facts.replicas >= wanted:
        return Finding("replicas", "ok", f"{facts.replicas} connected; a submit waits for {wanted}")
    said = f"{facts.replicas} of {wanted} connected"
    if not facts.append_only:
        said = "the server keeps no append-only log, so no replica confirms a write"
    action = (
        "Connect as many replicas, each with `appendonly yes` as the server itself, or lower FINETUNE_REDIS_REPLICAS."
    )
    return Finding("replicas", "warn", f"{said}: until then, workers with this setting submit nothing", action)


def _memory(facts: ServerFacts) -> Finding:
    used, most = facts.used_bytes, facts.max_bytes
    if not most:
        return Finding("memory", "ok", f"{byte_size(used)} in use; no limit is set")
    said = f"{byte_size(used)} of {byte_size(most)} (maxmemory) in use"
    if used < NEARLY_FULL * most:
        return Finding("memory", "ok", said)
    action = "Give the server more memory, or find out what fills it (docs/runbook.md, FinetuneRedisFull)."
    if used < most:
        return Finding("memory", "warn", f"{said}: a full server refuses new jobs and changes to jobs", action)
    return Finding("memory", "fail", f"{said}: it refuses new jobs and changes to jobs; none is lost", action)


def _workers(settings: Settings) -> tuple[int | None, list[Finding]]:
    """Return how many workers answer, None if they could not be asked, and what to say of that."""
    try:
        answered = Messenger(producer_app(settings)).workers(PING_SECONDS)
    except QueueUnavailableError as error:
        action = "See the lines redis, persistence and memory: the broker is the jobs' server."
        if _other_broker(settings):
            action = "Check FINETUNE_BROKER_URL, and the server's memory."
        return None, [Finding("workers", "fail", f"they could not be asked. {words.printable(error)}", action)]
    ours, others = (", ".join(map(words.printable, names)) for names in (answered.ours, answered.others))
    beside = f"; without this service's tasks, so not counted: {others}" if others else ""
    if not ours:
        action = "Start one: celery -A finetune_worker worker. Jobs wait until then."
        none = Finding("workers", "fail", f"no worker answered within {PING_SECONDS:g} s{beside}", action)
        return 0, list(_read(settings, "workers", partial(_silent, settings, beside))) or [none]
    alive = f"{len(answered.ours)} alive: {ours}"
    if answered.untaken:
        action = f"Start one: celery -A finetune_worker worker -Q {','.join(answered.untaken)}. Jobs wait until then."
        said = f"{alive}, and none takes from the queue {' or '.join(answered.untaken)}{beside}"
        return len(answered.ours), [Finding("workers", "fail", said, action)]
    return len(answered.ours), [Finding("workers", "ok", f"{alive}{beside}")]


def _broker_url(settings: Settings) -> str:
    return settings.finetune_broker_url or settings.finetune_redis_url


def _other_broker(settings: Settings) -> bool:
    return _broker_url(settings) != settings.finetune_redis_url


def _silent(settings: Settings, beside: str, client: "Redis") -> Iterator[Finding]:
    """Say that workers which did not answer are there all the same, if they give signs of life in Redis. With a broker
    of its own in these settings they may never answer: it need not be the workers' broker."""
    if there := len(Workers(client).alive()):
        count = words.count(there, "worker")
        said = f"none answered within {PING_SECONDS:g} s, though {count} gave a sign of life in the last {GONE:g} s"
        status: Status = "warn"
        why, then = "not back at the broker yet, busy, or killed a moment ago", "restart them one after the other"
        if _other_broker(settings):
            status, why = "fail", f"{why}, or their FINETUNE_BROKER_URL is another than here"
            then = f"make FINETUNE_BROKER_URL the same here and there, or {then}"
        action = f"Run finetune doctor again in a minute. If it says this still, {then}."
        yield Finding("workers", status, f"{said}: {why}{beside}", action)


def _read(settings: Settings, name: str, look: Callable[["Redis"], Iterable[Finding]]) -> Iterator[Finding]:
    """Say what a look at the server's data shows, or that it went away meanwhile."""
    try:
        with connect(settings.finetune_redis_url) as client:
            yield from look(client)
    except RedisError as error:
        yield Finding(name, "fail", f"cannot be read: {words.printable(error)}", "Run finetune doctor again.")


def _emptied(client: "Redis") -> Iterator[Finding]:
    """Say whether the server lost its data of late."""
    if at := Workers(client).emptied_ms():
        said = f"the server came back without its data {words.since(at)} ago: its jobs, and whose the trainings are"
        yield Finding("data", "fail", said, "Before anything is submitted: docs/runbook.md, FinetuneRedisEmptied.")


def _clock(client: "Redis") -> Iterator[Finding]:
    yield clock("clock", clock_skew(client), "the Redis server")


def _versions(answered: int | None, client: "Redis") -> Iterator[Finding]:
    """Say which versions the workers have that gave a sign of life lately; nothing without any, as ``workers`` says
    that.

    A worker that was killed a moment ago is still among them, so there may be more than ``answered`` just now.
    """
    running = Counter(worker.version for worker in Workers(client).alive())
    if not running:
        return
    found = ", ".join(f"{count} with {words.printable(version)}" for version, count in sorted(running.items()))
    said = f"workers seen in the last {GONE:g} s: {found}"
    silent = 0 if answered is None else running.total() - answered
    why = f"; {silent} of them did not answer just now: busy, stopped, or killed a moment ago" if silent > 0 else ""
    if running.keys() == {__version__}:
        yield Finding("versions", "ok", f"{said}, the same as this program{why}")
        return
    action = "Fine during an upgrade (workers first); otherwise bring all to one version (docs/upgrade.md)."
    yield Finding("versions", "warn", f"{said}; this program: {__version__}{why}", action)


def _worker_clocks(client: "Redis") -> Iterator[Finding]:
    """Name the workers whose clock was off when they started."""
    off = [worker for worker in Workers(client).alive() if worker.clock_off]
    if not off:
        return
    said: list[str] = []
    for worker in sorted(off, key=lambda worker: worker.name):
        side = "ahead of" if worker.clock_off > 0 else "behind"
        whose = "it" if said else "the Redis server"
        said.append(f"{words.printable(worker.shown)} is {words.duration(abs(worker.clock_off))} {side} {whose}")
    action = "Set their clocks by NTP and restart them: deadlines, event times and signatures depend on them."
    yield Finding("worker clocks", "warn", ", ".join(said), action)


def _worker_api(settings: Settings, client: "Redis") -> Iterator[Finding]:
    """Say which API the jobs on this Redis are for, if a worker has noted it: these settings may name another."""
    api = noted_api(client)
    if api is None:
        return
    said = "the real API: trainings are charged" if api == "paid" else "a sandbox: nothing is charged"
    if (api == "sandbox") is settings.segmind_is_loopback:
        yield Finding("worker api", "ok", f"the workers of this Redis call {said}")
        return
    message = f"the workers of this Redis call {said}; these settings name {settings.segmind_base_url}"
    action = "What is submitted here goes where the workers call. Set SEGMIND_BASE_URL here as it is there."
    yield Finding("worker api", "warn", message, action)


def _remote(settings: Settings) -> list[Sink]:
    """The service's own sinks that are on another server, one for each."""
    sinks = parse_sinks(settings.finetune_sinks)
    remote = {sink.origin: sink for sink in sinks if sink.kind in {SinkKind.WEB, SinkKind.BROKER}}
    return list(remote.values())


def _knock(sink: Sink) -> Finding:
    """See whether a sink's host takes a connection; no event is sent."""
    name, origin = "sink", words.printable(sink.origin)
    parts = urlsplit(sink.origin)
    port = parts.port or USUAL_PORTS.get(parts.scheme)
    if port is None or not parts.hostname:
        return Finding(name, "ok", f"{origin} is not tried from here; `finetune deliveries JOB` shows whether it works")
    try:
        socket.create_connection((parts.hostname, port), timeout=KNOCK_SECONDS).close()
    except (OSError, UnicodeError) as error:  # the second from a name with an empty or overlong part
        action = (
            "Correct FINETUNE_SINKS or start it; events wait until then. Workers must reach it, this machine need not."
        )
        why = getattr(error, "strerror", None) or error
        message = f"{origin} accepts no connection from here: {words.printable(why)}"
        return Finding(name, "warn", message, action)
    return Finding(name, "ok", f"{origin} accepts connections")


def _sinks(client: "Redis") -> Iterator[Finding]:
    troubles = SinkLines(client).troubles()
    if not troubles:
        yield Finding("sinks", "ok", "no sink is out of reach or refuses events")
    for each in troubles:
        since, why = words.since(each.since_ms), words.printable(each.reason)
        if each.refused_job is not None:
            action = f"Fix that; delivery is retried automatically. See: finetune deliveries {each.refused_job}"
            yield Finding("sinks", "warn", f"{why}; for {since} now", action)
            continue
        waits = f"{words.count(each.waiting, 'job')} {'waits' if each.waiting == 1 else 'wait'}"
        message = f"{words.printable(each.sink)} has been out of reach for {since}, {waits}: {why}"
        yield Finding("sinks", "warn", message, "It is retried automatically.")


def _strays(settings: Settings) -> Iterator[Finding]:
    """Find what raw clients sent to where no worker looks: without the key prefix, or to Celery's own default queue."""
    found: dict[str, int] = {}
    with suppress(RedisError), connect(_broker_url(settings)) as client:  # of a broker that is away, `workers` tells
        for name in stray_lists():
            # Another's key of that name, or one that this user may not read, is none of ours.
            with suppress(ResponseError, UnicodeDecodeError):
                if _is_ours(client.lindex(name, -1)):
                    found[name] = int(client.llen(name))
    if found:
        where = ", ".join(map(words.printable, found))
        message = f"{words.count(sum(found.values()), 'message')} for this service where no worker looks: {where}"
        action = (
            f"Give their sender the queue `{QUEUE}` and the transport options of docs/contract/README.md, and have it "
            'send them again; then delete these lists, in redis-cli with DEL "NAME".'
        )
        yield Finding("strays", "warn", message, action)


def _is_ours(message: object) -> bool:
    """Tell whether a list's oldest message is for a task of this service; other services may use these lists."""
    try:
        return str(json.loads(str(message))["headers"]["task"]).startswith("finetune.")
    except (ValueError, TypeError, LookupError):
        return False


def _store(name: str, setting: str, url: str, *, needed: bool) -> Finding:
    try:
        Place(url).check_writable()
    except StorageError as error:
        whose = "" if needed else "Only workers need to write there. "
        action = f"{whose}{error.fix or 'Fix it.'} The setting is {setting}."
        return Finding(name, "fail" if needed else "warn", words.printable(error.sentence), action)
    return Finding(name, "ok", f"{words.near(url)} is writable from here")


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
