"""Blows against processes: workers, Valkey and Segmind are killed, stopped, frozen and refuse."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from finetune_chaos.agenda import AGAIN, PATIENCE, Agenda
from finetune_chaos.ground import Ground
from finetune_chaos.script import spread
from finetune_queue.local.processes import Child
from finetune_queue.store import RedisError

Action = Callable[[dict[str, Any]], bool]
"""Does what an act of the script asks for, by its arguments; False if there was nothing to do it to."""

LONGEST_END = 60.0
"""Seconds after which a worker that was told to end hangs: its soft shutdown and every time-out are over by then."""


class Workers:
    """Keeps as many running as there were at the start; they die with the thread that starts them."""

    def __init__(self, ground: Ground, agenda: Agenda) -> None:
        self.ended: dict[Child, str] = {}
        """Processes that ended though nobody ended them, or did not though they were told to, and how."""
        self._ground = ground
        self._agenda = agenda
        self._wanted = len(ground.workers)
        self._names = count(self._wanted + 1)
        self._stopped: set[Child] = set()
        self._struck: set[Child] = set()
        self._told: dict[Child, float] = {}
        """Workers that were told to end, and when they last could begin to."""

    @property
    def acts(self) -> Mapping[str, Action]:
        """What can be done to them, by kind."""
        return {
            "worker SIGKILL": self._sending(signal.SIGKILL),
            "worker SIGTERM": self._sending(signal.SIGTERM),
            "worker SIGQUIT": self._sending(signal.SIGQUIT),
            "worker SIGSTOP": self._stand_still,
            "workers SIGKILL, all": self._kill_all,
        }

    def keep(self) -> None:
        """Note what ended by itself or hangs, and start as many as there should be."""
        for child in self._ground.children:
            if not child.running and child not in self._struck and child is not self._ground.valkey.process:
                self.ended.setdefault(child, f"{child.name} ended by itself with exit code {child.returncode}")
        for worker in self._told.keys() & set(self._alive()):
            if time.monotonic() - self._told[worker] > LONGEST_END:
                self.ended[worker] = f"{worker.name} still ran {LONGEST_END:g} s after it was told to end"
                worker.kill()
        for _ in range(self._wanted - len(self._alive())):
            self.start_one()

    def start_one(self) -> None:
        """Start one more."""
        self._ground.launch_worker(f"worker{next(self._names)}")

    def calm(self) -> None:
        """Wake all that stand still."""
        for worker in list(self._stopped):
            self._wake(worker)

    def _alive(self) -> list[Child]:
        return [worker for worker in self._ground.workers if worker.running and worker not in self._stopped]

    def _sending(self, number: signal.Signals) -> Action:
        def send(args: dict[str, Any]) -> bool:
            alive = self._alive()
            if not alive:
                return False
            worker: Child = spread(alive, args["pick"])
            self._struck.add(worker)
            worker.send_signal(number)
            if number is not signal.SIGKILL:
                self._told.setdefault(worker, time.monotonic())
            return True

        return send

    def _kill_all(self, _args: dict[str, Any]) -> bool:
        alive = self._alive()
        for worker in alive:
            self._struck.add(worker)
            worker.send_signal(signal.SIGKILL)
        return bool(alive)

    def _stand_still(self, args: dict[str, Any]) -> bool:
        alive = self._alive()
        if not alive:
            return False
        worker: Child = spread(alive, args["pick"])
        worker.send_signal(signal.SIGSTOP)
        self._stopped.add(worker)

        def wake() -> bool:
            self._wake(worker)
            return True

        self._agenda.after(args["seconds"], "worker SIGCONT", wake)
        return True

    def _wake(self, worker: Child) -> None:
        worker.send_signal(signal.SIGCONT)
        self._stopped.discard(worker)
        if worker in self._told:
            self._told[worker] = time.monotonic()


class Servers:
    """Valkey, one trouble at a time, and Segmind."""

    def __init__(self, ground: Ground, agenda: Agenda, client: Any) -> None:
        self._valkey = ground.valkey
        self._sandbox = next(child for child in ground.children if child.name == "sandbox")
        self._agenda = agenda
        self._redis = client
        self._in_trouble = False

    @property
    def acts(self) -> Mapping[str, Action]:
        """What can be done to them, by kind."""
        return {
            "valkey killed": self._trouble(self._valkey.kill, self._start),
            "valkey restarted": self._trouble(self._valkey.stop, self._start),
            "valkey frozen": self._trouble(lambda: self._signal(signal.SIGSTOP), lambda: self._signal(signal.SIGCONT)),
            "valkey full": self._commands(("CONFIG", "SET", "maxmemory", 1), ("CONFIG", "SET", "maxmemory", 0)),
            "valkey read-only": self._commands(("REPLICAOF", "127.0.0.1", 1), ("REPLICAOF", "NO", "ONE")),
            "valkey paused": self._pause,
            "connections killed": self._cut,
            "segmind frozen": self._freeze_segmind,
        }

    def keep_log(self) -> None:
        """Keep the whole log, which the witness reads for secrets: a rewrite would drop what is gone."""
        self._redis.config_set("auto-aof-rewrite-percentage", 0)

    def calm(self) -> None:
        """End all trouble."""
        self._sandbox.send_signal(signal.SIGCONT)
        self._signal(signal.SIGCONT)
        if not self._valkey.process.running:
            self._start()
        end = time.monotonic() + PATIENCE
        for over in (("CLIENT", "UNPAUSE"), ("CONFIG", "SET", "maxmemory", 0), ("REPLICAOF", "NO", "ONE")):
            while not self._answered(over, last=time.monotonic() > end):
                time.sleep(AGAIN)  # a server that is paused, or has just been woken, may answer too late

    def _answered(self, command: Sequence[Any], *, last: bool) -> bool:
        try:
            self._redis.execute_command(*command)
        except RedisError:
            if last:
                raise
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        self._valkey.process.send_signal(number)

    def _start(self) -> None:
        if not self._valkey.process.running:  # it may be, if only the command below failed the last time
            self._valkey.start()
        self.keep_log()

    def _trouble(self, begin: Callable[[], object], end: Callable[[], object]) -> Action:
        """Return an act that lets a trouble begin, and plans its end; not while there is another."""

        def over() -> bool:
            end()
            self._in_trouble = False
            return True

        def act(args: dict[str, Any]) -> bool:
            if self._in_trouble:
                return False
            begin()
            self._in_trouble = True
            self._agenda.after(args["seconds"], "valkey well again", over)
            return True

        return act

    def _commands(self, begin: Sequence[Any], end: Sequence[Any]) -> Action:
        return self._trouble(lambda: self._redis.execute_command(*begin), lambda: self._redis.execute_command(*end))

    def _pause(self, args: dict[str, Any]) -> bool:
        milliseconds = int(args["seconds"] * 1000)
        return self._commands(("CLIENT", "PAUSE", milliseconds, "ALL"), ("CLIENT", "UNPAUSE"))(args)

    def _cut(self, _args: dict[str, Any]) -> bool:
        killed = 0
        for kind in ("normal", "pubsub"):
            killed += self._redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
        return killed > 0

    def _freeze_segmind(self, args: dict[str, Any]) -> bool:
        """Let Segmind stand still: what was sent meanwhile reaches it after its sender has given up."""
        self._sandbox.send_signal(signal.SIGSTOP)

        def thaw() -> bool:
            self._sandbox.send_signal(signal.SIGCONT)
            return True

        self._agenda.after(args["seconds"], "segmind well again", thaw)
        return True
