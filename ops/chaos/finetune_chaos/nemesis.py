"""The nemesis: plays the script against everything at once."""

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import redis

from finetune_chaos.agenda import Agenda, Blow
from finetune_chaos.callers import Callers
from finetune_chaos.ground import Scene
from finetune_chaos.on_processes import Servers, Workers
from finetune_chaos.on_traffic import Hooks, Messages, Segmind
from finetune_chaos.outside import MOODS
from finetune_chaos.script import Act, Script

TICK = 0.03


class Nemesis:
    """What it does to processes runs in the main thread: those that it starts die with the thread that started them.
    All else has a thread of its own, since it waits for servers that stand still just then."""

    def __init__(self, script: Script, scene: Scene, callers: Callers, say: Callable[[str], None]) -> None:
        self.fired: Counter[str] = Counter()
        self._script = script
        self._outside = scene.outside
        self._say = say
        self._redis: Any = redis.Redis.from_url(scene.ground.valkey.url, decode_responses=True, socket_timeout=1)
        self._hard, self._soft = Agenda(), Agenda()
        self.workers = Workers(scene.ground, self._hard)
        self.hooks = Hooks(scene.outside.gateway, self._redis)
        self._servers = Servers(scene.ground, self._hard, self._redis)
        self._segmind = Segmind(scene, self._soft, self._redis)
        messages = Messages(self._redis, random.Random(f"messages {script.seed}"))
        self._on_processes = {**self.workers.acts, **self._servers.acts}
        others = (messages, self._segmind, self.hooks, callers)
        self._on_others = {kind: act for part in others for kind, act in part.acts.items()}

    def run(self) -> None:
        """Do everything in the script, and keep as many workers running as there were."""
        for act in self._script.acts:
            agenda = self._hard if act.kind in self._on_processes else self._soft
            agenda.at(act.at, act.kind, self._blow(act))
        self._servers.keep_log()
        with ThreadPoolExecutor(1, "nemesis") as pool:
            for agenda in (self._hard, self._soft):
                agenda.start()
            others = pool.submit(self._play, self._soft)
            self._play(self._hard, self.workers.keep)
            self._servers.calm()
        others.result()

    def stop(self) -> None:
        """Let nothing go wrong from now on."""
        self.workers.calm()
        self.workers.keep()
        self._outside.calm()
        self.fired.update(self._outside.fired)
        self.fired.update(self._segmind.calm())
        self._redis.close()

    def _play(self, agenda: Agenda, besides: Callable[[], None] = lambda: None) -> None:
        while agenda.now < self._script.seconds:
            agenda.strike(partial(self._attempt, agenda))
            besides()
            time.sleep(TICK)

    def _blow(self, act: Act) -> Blow:
        # What the sandbox and the outside do is counted there, when it happens to a call.
        if "op" in act.args:
            return lambda: self._segmind.arm(act.kind, act.args)
        if act.kind in MOODS:
            return lambda: self._outside.upset(act.kind, act.args["count"], act.args.get("seconds", 0.0))
        act_on = self._on_processes.get(act.kind) or self._on_others[act.kind]

        def blow() -> bool:
            hit = act_on(act.args)
            self.fired[act.kind] += hit
            return hit

        return blow

    def _attempt(self, agenda: Agenda, kind: str, blow: Blow) -> bool:
        try:
            hit = blow()
        except (redis.RedisError, httpx.HTTPError):  # in the middle of what the nemesis did itself
            return False
        if hit and not kind.endswith(" is over"):
            self._say(f"{agenda.now:7.2f} {kind}")
        return hit
