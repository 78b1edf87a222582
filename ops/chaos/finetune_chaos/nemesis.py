"""The nemesis: does what the script says to workers, Valkey, messages, the sandbox, webhooks and sinks."""

import heapq
import json
import random
import signal
import threading
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import httpx
import redis

from finetune_chaos.callers import Callers
from finetune_chaos.ground import Scene
from finetune_chaos.script import FAULT_LASTS, Script, spread
from finetune_queue.local.processes import Child
from finetune_queue.messaging import QUEUE, RUN, TRANSFER_QUEUE

TICK = 0.03

PATIENCE = 20.0
"""Seconds for which an act waits for something that it can hit."""

_QUEUES = [
    f"{{finetune}}:{queue}{suffix}"
    for queue in (QUEUE, TRANSFER_QUEUE)
    for suffix in ("", "\x06\x163", "\x06\x166", "\x06\x169")
]
"""The lists of the broker: kombu has one for each step of priority."""


class Nemesis:
    """Runs in the main thread: the processes that it starts die with the thread that started them."""

    def __init__(self, script: Script, scene: Scene, callers: Callers, say: Callable[[str], None]) -> None:
        self.fired: Counter[str] = Counter()
        self.wrong: list[str] = []
        """What was answered that should not have been."""
        self.ended: dict[Child, str] = {}
        """Processes that ended though nobody ended them, and how."""
        self._script = script
        self._ground = ground = scene.ground
        self._outside = scene.outside
        self._control = scene.control
        self._callers = callers
        self._sandbox = next(child for child in ground.children if child.name == "sandbox")
        self._say = say
        self._chance = random.Random(f"nemesis {script.seed}")
        self._redis: Any = redis.Redis.from_url(ground.valkey.url, decode_responses=True, socket_timeout=3)
        self._wanted = len(ground.workers)
        self._names = count(self._wanted + 1)
        self._stopped: set[Child] = set()
        self._struck: set[Child] = set()
        self._armed: dict[int, str] = {}
        self._order = count()
        self._later: list[tuple[float, int, float, str, Callable[[], bool]]] = []
        self._began = time.monotonic()

    # the run

    def run(self) -> None:
        """Do everything in the script, and keep as many workers running as there were."""
        self._began = time.monotonic()
        for act in self._script.acts:
            self._plan(act.at, act.kind, self._blow(act.kind, act.args))
        while (now := self._now()) < self._script.seconds:
            while self._later and self._later[0][0] <= now:
                _, _, since, kind, blow = heapq.heappop(self._later)
                self._strike(since, kind, blow)
            self.keep_workers()
            time.sleep(TICK)

    def stop(self) -> None:
        """Let nothing go wrong from now on: wake what stands still, disarm all faults, start what is down."""
        for worker in self._stopped:
            worker.send_signal(signal.SIGCONT)
        self._ground.valkey.process.send_signal(signal.SIGCONT)
        if not self._ground.valkey.process.running:
            self._ground.valkey.start()
        for over in (("CLIENT", "UNPAUSE"), ("CONFIG", "SET", "maxmemory", 0), ("REPLICAOF", "NO", "ONE")):
            self._redis.execute_command(*over)
        self._outside.calm()
        self.fired.update(self._outside.fired)
        self._count_fired()
        self._control.reset("faults")
        self._control.change_settings(private_weights=False)
        for training in self._control.trainings():
            if training["held"]:
                self._control.change_training(training["finetune_id"], hold=False)
        self.keep_workers()
        self._redis.close()

    def keep_workers(self) -> None:
        """Note what ended by itself, and start as many workers as there should be."""
        for child in self._ground.children:
            if not child.running and child not in self._struck and child is not self._ground.valkey.process:
                self.ended.setdefault(child, f"{child.name} ended by itself with exit code {child.returncode}")
        for _ in range(self._wanted - len(self._alive())):
            self._ground.launch_worker(f"worker{next(self._names)}")

    def renew_a_worker(self) -> None:
        """Start one more, as a deployment would."""
        self._ground.launch_worker(f"worker{next(self._names)}")

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _plan(self, at: float, kind: str, blow: Callable[[], bool]) -> None:
        heapq.heappush(self._later, (at, next(self._order), at, kind, blow))

    def _strike(self, since: float, kind: str, blow: Callable[[], bool]) -> None:
        try:
            hit = blow()
        except (redis.RedisError, httpx.HTTPError) as error:
            hit = False
            self._say(f"{self._now():7.2f} {kind}: {type(error).__name__}")
        if hit:
            if not kind.endswith(" is over"):
                self._say(f"{self._now():7.2f} {kind}")
            if kind in self._script.kinds and kind not in self._armed.values() and kind not in self._outside_kinds:
                self.fired[kind] += 1
        elif self._now() < since + PATIENCE:
            heapq.heappush(self._later, (self._now() + TICK, next(self._order), since, kind, blow))

    _outside_kinds = frozenset(
        {"hook lost", "hook repeated", "hook late", "sink error", "sink busy", "sink reply lost", "sink slow"}
    )
    """Counted where they happen, request by request."""

    def _blow(self, kind: str, args: dict[str, Any]) -> Callable[[], bool]:
        if "op" in args:
            return lambda: self._arm(kind, args)
        if kind in self._outside_kinds:
            return lambda: self._upset(kind, args)
        blows: dict[str, Callable[[dict[str, Any]], bool]] = {
            "worker SIGKILL": self._signal(signal.SIGKILL),
            "worker SIGTERM": self._signal(signal.SIGTERM),
            "worker SIGQUIT": self._signal(signal.SIGQUIT),
            "worker SIGSTOP": self._stand_still,
            "workers SIGKILL, all": self._kill_all,
            "valkey killed": self._kill_valkey,
            "valkey restarted": self._restart_valkey,
            "valkey frozen": self._freeze_valkey,
            "valkey paused": self._pause_valkey,
            "valkey full": self._for_a_while(("CONFIG", "SET", "maxmemory", 1), ("CONFIG", "SET", "maxmemory", 0)),
            "valkey read-only": self._for_a_while(("REPLICAOF", "127.0.0.1", 1), ("REPLICAOF", "NO", "ONE")),
            "connections killed": self._cut,
            "message dropped": self._drop,
            "message duplicated": self._duplicate,
            "messages lost, all": self._empty,
            "segmind frozen": self._freeze_segmind,
            "training hidden": self._hide,
            "weights private": self._make_private,
            "hooks forged": self._forge,
            "hooks flood": self._flood,
        }
        blow = blows.get(kind) or self._callers.act(kind)
        return lambda: blow(args)

    # workers

    def _alive(self) -> list[Child]:
        return [worker for worker in self._ground.workers if worker.running and worker not in self._stopped]

    def _signal(self, number: signal.Signals) -> Callable[[dict[str, Any]], bool]:
        def send(args: dict[str, Any]) -> bool:
            alive = self._alive()
            if not alive:
                return False
            worker: Child = spread(alive, args["pick"])
            self._struck.add(worker)
            worker.send_signal(number)
            return True

        return send

    def _kill_all(self, _args: dict[str, Any]) -> bool:
        for worker in self._alive():
            self._struck.add(worker)
            worker.send_signal(signal.SIGKILL)
        return True

    def _stand_still(self, args: dict[str, Any]) -> bool:
        alive = self._alive()
        if not alive:
            return False
        worker: Child = spread(alive, args["pick"])
        worker.send_signal(signal.SIGSTOP)
        self._stopped.add(worker)

        def wake() -> bool:
            worker.send_signal(signal.SIGCONT)
            self._stopped.discard(worker)
            return True

        self._plan(self._now() + args["seconds"], "worker SIGCONT", wake)
        return True

    # Valkey

    def _kill_valkey(self, args: dict[str, Any]) -> bool:
        self._ground.valkey.kill()
        return self._start_valkey_in(args["seconds"])

    def _restart_valkey(self, args: dict[str, Any]) -> bool:
        self._ground.valkey.stop()
        return self._start_valkey_in(args["seconds"])

    def _start_valkey_in(self, seconds: float) -> bool:
        time.sleep(seconds)
        self._ground.valkey.start()
        return True

    def _freeze_valkey(self, args: dict[str, Any]) -> bool:
        server = self._ground.valkey.process
        server.send_signal(signal.SIGSTOP)
        time.sleep(args["seconds"])
        server.send_signal(signal.SIGCONT)
        return True

    def _pause_valkey(self, args: dict[str, Any]) -> bool:
        self._redis.execute_command("CLIENT", "PAUSE", int(args["seconds"] * 1000), "ALL")
        return True

    def _for_a_while(self, trouble: Sequence[Any], over: Sequence[Any]) -> Callable[[dict[str, Any]], bool]:
        def begin(args: dict[str, Any]) -> bool:
            self._redis.execute_command(*trouble)
            self._plan(self._now() + args["seconds"], "valkey well again", end)
            return True

        def end() -> bool:
            self._redis.execute_command(*over)
            return True

        return begin

    def _cut(self, _args: dict[str, Any]) -> bool:
        killed = sum(
            self._redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            for kind in ("normal", "pubsub")
        )
        return bool(killed)

    # messages

    def _hints(self) -> Iterator[tuple[str, str]]:
        """Yield queue and text of messages that are only hints; a raw request is all there is of its job."""
        for queue in self._chance.sample(_QUEUES, len(_QUEUES)):
            for text in self._redis.lrange(queue, 0, -1):
                message = json.loads(text)
                if message["headers"]["task"] != RUN or isinstance(_arguments(message)[0], str):
                    yield queue, text

    def _drop(self, _args: dict[str, Any]) -> bool:
        return any(self._redis.lrem(queue, -1, text) for queue, text in self._hints())

    def _duplicate(self, _args: dict[str, Any]) -> bool:
        return any(self._redis.lpush(queue, text) for queue, text in self._hints())

    def _empty(self, _args: dict[str, Any]) -> bool:
        return bool(sum(self._redis.lrem(queue, -1, text) for queue, text in self._hints()))

    # Segmind

    def _arm(self, kind: str, args: dict[str, Any]) -> bool:
        number = self._control.add_fault(**args)
        self._armed[number] = kind

        def disarm() -> bool:
            self._count_fired(number)
            self._control.remove_fault(number)
            return True

        self._plan(self._now() + FAULT_LASTS, f"{kind} is over", disarm)
        return True

    def _count_fired(self, number: int | None = None) -> None:
        """Take down how often the armed faults fired, or one of them that is about to be disarmed."""
        for fault in self._control.faults():
            if number in {None, fault["id"]}:
                self.fired[self._armed[fault["id"]]] += fault["fired"]

    def _freeze_segmind(self, args: dict[str, Any]) -> bool:
        """Let Segmind stand still: what was sent meanwhile reaches it after its sender has given up."""
        self._sandbox.send_signal(signal.SIGSTOP)
        time.sleep(args["seconds"])
        self._sandbox.send_signal(signal.SIGCONT)
        return True

    def _hide(self, args: dict[str, Any]) -> bool:
        """Hide a training that some job is known to own: from a list it can then not be found again."""
        owned = set(self._redis.hkeys("{finetune}:owners"))
        rows = [row for row in self._control.trainings() if row["finetune_id"] in owned and not row["hidden"]]
        running = [row for row in rows if row["status"] in {"REQUESTED", "DATA_PROCESSING", "TRAINING_INITIATED"}]
        if not running:
            return False
        self._control.change_training(spread(running, args["pick"])["finetune_id"], hidden=True)
        return True

    def _make_private(self, args: dict[str, Any]) -> bool:
        self._control.change_settings(private_weights=True)

        def open_again() -> bool:
            self._control.change_settings(private_weights=False)
            return True

        self._plan(self._now() + args["seconds"], "weights public", open_again)
        return True

    # webhooks and sinks

    def _upset(self, kind: str, args: dict[str, Any]) -> bool:
        self._outside.upset(kind, args["count"], args.get("seconds", 0.0))
        return True

    def _forge(self, args: dict[str, Any]) -> bool:
        """Hooks with the right token and a lie, which are taken as a hint, and hooks with a wrong one."""
        owned = list(self._redis.hgetall("{finetune}:owners"))
        with httpx.Client(timeout=5, trust_env=False) as client:
            for url in self._outside.gateway.values():
                for number in range(args["count"]):
                    lie = {"status": "FAILED", "finetune_id": owned[number] if number < len(owned) else "x"}
                    client.post(url, json=lie)
                status = client.post(url[:-1] + ("A" if url[-1] != "A" else "B"), json={}).status_code
                if status != httpx.codes.NOT_FOUND:
                    self.wrong.append(f"a hook with a wrong token was answered with {status}")
        return True

    def _flood(self, args: dict[str, Any]) -> bool:
        url = spread(sorted(self._outside.gateway.values()), args["pick"])

        def flood() -> None:
            with httpx.Client(timeout=5, trust_env=False) as client:
                for _ in range(args["count"]):
                    try:
                        client.post(url, content=b"{}")
                    except httpx.HTTPError:
                        return

        threading.Thread(target=flood, daemon=True).start()
        return True


def _arguments(message: dict[str, Any]) -> Any:
    return json.loads(b64decode(message["body"]))[0]
