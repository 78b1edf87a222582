"""The witness: writes down what is published while the run goes on, and in the end collects everything there is."""

import hashlib
import json
import re
import threading
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import redis

from finetune_chaos.callers import Callers
from finetune_chaos.ground import LIMITS, LIST, QUEUE, STREAM, WEIGHTS_BYTES, Scene
from finetune_chaos.history import History, Promise, SeenAccount, SeenJob, SeenSink, SeenTraining
from finetune_chaos.nemesis import Nemesis
from finetune_chaos.outside import OWN, REPLY
from finetune_chaos.script import ACCOUNTS, Script
from finetune_queue.contract import JobRecord, Visibility
from finetune_queue.contract.kinds import EventType
from finetune_queue.contract.sink import STATE_CHANGES
from finetune_queue.store import keys
from segmind_sandbox.weights import Weights

_SIGNATURE = re.compile(r"X-(?:Amz|Goog)-Signature(?:=|%3D)([0-9a-f]{16,})", re.IGNORECASE)
_BODY = re.compile(r'"body": ?"([A-Za-z0-9+/=]{8,})"')
_CRASH = re.compile(r'"event": "(\w+_crashed|loop_failed)"')
"""What the last handlers log, which should have nothing to do."""
_UPLOAD = re.compile(r"[^:\s]+".join(map(re.escape, keys.upload_url("ID").split("ID"))))


class Listener:
    """Writes down all that is published on Redis: what Flower, or anybody, can see of the workers."""

    def __init__(self, url: str, path: Path) -> None:
        self.path = path
        self._url = url
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(10)

    def _listen(self) -> None:
        with self.path.open("a", buffering=1) as file:  # read for secrets while this goes on
            while not self._closing.is_set():
                try:
                    self._take(file)
                except (redis.RedisError, OSError):  # it was killed, or we were
                    self._closing.wait(0.2)

    def _take(self, file: Any) -> None:
        with redis.Redis.from_url(self._url, decode_responses=True, socket_timeout=5) as client, client.pubsub() as sub:
            sub.psubscribe("*")
            while not self._closing.is_set():
                message = sub.get_message(timeout=0.5)
                if message is not None and message["type"] == "pmessage":
                    file.write(f"{message['channel']} {message['data']}\n")


def find_leaks(where: str, lines: Iterable[str], secrets: Mapping[str, str]) -> Iterator[str]:
    """Yield each secret that a text holds, plain or inside the body of a Celery message, with where it is."""
    seen: set[str] = set()
    before = ""
    for number, line in enumerate(lines, start=1):
        text = line
        for body in _BODY.findall(line.replace('\\"', '"')):
            try:
                text += b64decode(body, validate=True).decode(errors="replace")
            except Base64Error:
                continue
        found = [name for name, secret in secrets.items() if secret in text]
        if _SIGNATURE.search(text) and not _UPLOAD.search(before):
            found.append("signature of a presigned URL")
        for name in found:
            if name not in seen:
                seen.add(name)
                yield f"{where}, line {number}: {name}"
        # In Redis' log a value stands two lines below its key.
        before = before.rpartition("\n")[2] + "\n" + line.rstrip("\r\n")


class Witness:
    """Collects the history of a run that is over."""

    def __init__(self, script: Script, scene: Scene, callers: Callers) -> None:
        self._script = script
        self._ground = scene.ground
        self._outside = scene.outside
        self._control = scene.control
        self._secrets = scene.secrets
        self._callers = callers
        self._redis: Any = redis.Redis.from_url(scene.ground.valkey.url, decode_responses=True, socket_timeout=30)

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def trainings(self) -> list[SeenTraining]:
        """Return what Segmind has."""
        return [
            SeenTraining(
                finetune_id=row["finetune_id"],
                name=row["name"],
                dataset=row["data_source_path"],
                status=row["status"],
                sha256=_weights_sha256(row["model_id"]),
                public=row["public_model"],
            )
            for row in self._control.trainings()
        ]

    def left_over(self) -> dict[str, int]:
        """Return how much waits in Redis, by where."""
        names = {"deadlines": keys.deadlines(), "outbox": keys.outbox(), "lines": keys.lines()}
        for account in ACCOUNTS:
            names[f"the waiting room of {account}"] = keys.room(account)
            names[f"the tracked of {account}"] = keys.tracked(account)
        return {where: int(self._redis.zcard(key)) for where, key in names.items()}

    def age_unacknowledged(self) -> None:
        """Let the visibility time-out pass for messages that a killed worker had in hand."""
        index = f"{keys.BROKER_PREFIX}unacked_index"  # kombu's
        held = self._redis.zrange(index, 0, -1)
        if held:
            self._redis.zadd(index, dict.fromkeys(held, 1), xx=True)

    def collect(self, nemesis: Nemesis, *, left_alone: set[str], resolved: int) -> History:
        """Read everything."""
        jobs = {job.job_id: job for job in self._jobs()}
        files, manifests = self._files()
        expected = self._script.kinds if self._script.long else []
        promised = self._callers.promised
        return History(
            seed=self._script.seed,
            seconds=self._script.seconds,
            promises=[
                Promise(job_id, order.fields["name"], left_alone=job_id in left_alone)
                for job_id, order in promised.items()
            ],
            jobs=jobs,
            trainings=self.trainings(),
            stream=[json.loads(fields["event"]) for _, fields in self._redis.xrange(keys.events())],
            sinks=self._sinks(frozenset(jobs)),
            accounts=self._accounts(),
            files=files,
            manifests=manifests,
            poisoned=self._callers.poisoned,
            dead_letters=frozenset(fields["message_id"] for _, fields in self._redis.xrange(keys.dead_letters())),
            asked_to_cancel=frozenset(self._callers.asked_to_cancel),
            asked_to_retry=dict(self._callers.asked_to_retry),
            left_over=self.left_over(),
            leaks=list(self._leaks()),
            answers=[*self._callers.wrong, *nemesis.hooks.wrong],
            crashes=list(self._crashes()),
            ended=list(nemesis.workers.ended.values()),
            fired=nemesis.fired,
            expected_kinds=expected,
            sent_again=self._callers.sent_again,
            resolved=resolved,
        )

    def _jobs(self) -> Iterator[SeenJob]:
        for job in self._callers.queue.list(limit=1_000_000):
            record = job.record
            yield SeenJob(
                job_id=job.id,
                name=record.request.name,
                state=str(record.state),
                finetune_id=record.finetune_id,
                sha256=record.weights.sha256 if record.weights else None,
                public=_is_public(record),
                error=f"{record.error.code}: {record.error.message}" if record.error else "",
                events=[event.model_dump(mode="json") for event in job.events()],
            )

    def _sinks(self, jobs: frozenset[str]) -> list[SeenSink]:
        changes = frozenset(map(str, STATE_CHANGES))
        everything = frozenset(map(str, EventType))
        asked = {
            name: frozenset(
                job_id for job_id, order in self._callers.promised.items() if name in order.fields.get("sinks", [])
            )
            for name in ("list", "celery", "web")
        }
        stream = [json.loads(fields["event"]) for _, fields in self._redis.xrange(STREAM)]
        pushed = [json.loads(text) for text in reversed(self._redis.lrange(LIST, 0, -1))]
        messages = [json.loads(text) for text in reversed(self._redis.lrange(f"{keys.BROKER_PREFIX}{QUEUE}", 0, -1))]
        tasks = [json.loads(b64decode(message["body"]))[0][0] for message in messages]
        own, reply = self._outside.taken[OWN], self._outside.taken[REPLY]
        return [
            SeenSink("stream", stream, jobs, everything),
            SeenSink("web of the service", own.events, jobs, changes, own.forged),
            SeenSink("web of a request", reply.events, asked["web"], changes, reply.forged),
            SeenSink("list of a request", pushed, asked["list"], changes),
            SeenSink("Celery task of a request", tasks, asked["celery"], changes),
        ]

    def _accounts(self) -> list[SeenAccount]:
        seen = self._control.report()["accounts"]
        return [
            SeenAccount(
                name=name,
                limit=int(LIMITS[name].partition("/")[0]),
                most_in_window=row["most_calls_in_window"],
                refused=row["rejected"],
                calls=row["calls"],
            )
            for name, row in zip(ACCOUNTS, (seen[key] for key in sorted(seen)), strict=True)
        ]

    def _files(self) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, Any]]]:
        files: dict[str, dict[str, str]] = {}
        manifests: dict[str, dict[str, Any]] = {}
        for path in sorted(self._ground.artifacts.glob("*/*")):
            body = path.read_bytes()
            files.setdefault(path.parent.name, {})[path.name] = hashlib.sha256(body).hexdigest()
            if path.name == "manifest.json":
                manifests[path.parent.name] = json.loads(body)
        return files, manifests

    def _leaks(self) -> Iterator[str]:
        secrets = self._secrets.all()
        # Where an event goes is no secret inside Redis: a worker reads it there.
        shown = {**secrets, "path of a sink": self._secrets.sink_path}
        sent = self._control.report()["key_leaks"]
        if sent:
            yield f"an API key was sent to Segmind's storage {sent} times"
        for log in sorted(self._ground.folder.glob("*.log")):
            if log.name != "sandbox.log":  # Segmind knows its own
                with log.open(errors="replace") as lines:
                    yield from find_leaks(log.name, lines, shown)
        for log in sorted((self._ground.folder / "valkey").glob("**/*.aof")):
            with log.open(errors="replace", newline="\n") as lines:
                yield from find_leaks(f"Redis' log {log.name}", lines, secrets)
        yield from find_leaks("Redis", self._records(), secrets)

    def _crashes(self) -> Iterator[str]:
        for log in sorted(self._ground.folder.glob("*.log")):
            with log.open(errors="replace") as lines:
                for number, line in enumerate(lines, start=1):
                    found = _CRASH.search(line)
                    if found is not None:
                        what = [*re.findall(r'"exc_(?:type|value)": "([^"]*)"', line)[:2]]
                        yield f"{log.name}, line {number}: {found[1]}: {': '.join(what)}"

    def _records(self) -> Iterator[str]:
        """Yield everything in Redis as text, but for presigned uploads: they are kept there as the secrets they are."""
        for kind in ("string", "hash", "list", "stream", "zset", "set"):
            for name in self._redis.scan_iter(count=500, _type=kind):
                if not _UPLOAD.fullmatch(name):
                    yield f"{name} {_read(self._redis, name, kind)}"


def _read(client: Any, name: str, kind: str) -> object:
    match kind:
        case "string":
            return client.get(name)
        case "hash":
            return json.dumps(client.hgetall(name))
        case "list":
            return "\n".join(client.lrange(name, 0, -1))
        case "stream":
            return client.xrange(name)
        case "zset":
            return client.zrange(name, 0, -1)
        case _:
            return client.smembers(name)


def _weights_sha256(model_id: str) -> str:
    file = Weights(model_id, 0, WEIGHTS_BYTES)
    digest, at = hashlib.sha256(), 0
    while at < WEIGHTS_BYTES:
        chunk = file.read(at, WEIGHTS_BYTES - at)
        digest.update(chunk)
        at += len(chunk)
    return digest.hexdigest()


def _is_public(record: JobRecord) -> bool | None:
    confirmed = record.access.confirmed if record.access else None
    return None if confirmed is None else confirmed is Visibility.PUBLIC
