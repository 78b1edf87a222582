"""Blows against what is on its way: Celery's messages, calls to Segmind and its webhooks."""

import json
import random
import threading
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from finetune_chaos.agenda import Agenda
from finetune_chaos.ground import Scene
from finetune_chaos.on_processes import Action
from finetune_chaos.script import FAULT_LASTS, spread
from finetune_queue.messaging import QUEUE, RUN, TRANSFER_QUEUE, queue_lists
from finetune_queue.store import keys

_QUEUES = [name for queue in (QUEUE, TRANSFER_QUEUE) for name in queue_lists(queue).values()]
"""The lists of the broker."""


class Messages:
    """Celery messages in the broker, but for raw requests: such a message is all there is of its job."""

    def __init__(self, client: Any, chance: random.Random) -> None:
        self._redis = client
        self._chance = chance

    @property
    def acts(self) -> Mapping[str, Action]:
        """What can be done to them, by kind."""
        return {
            "message dropped": lambda _: any(self._redis.lrem(queue, -1, text) for queue, text in self._hints()),
            "message duplicated": lambda _: any(self._redis.lpush(queue, text) for queue, text in self._hints()),
            "messages lost, all": lambda _: sum(self._redis.lrem(queue, -1, text) for queue, text in self._hints()) > 0,
        }

    def _hints(self) -> Iterator[tuple[str, str]]:
        for queue in self._chance.sample(_QUEUES, len(_QUEUES)):
            for text in self._redis.lrange(queue, 0, -1):
                message = json.loads(text)
                if message["headers"]["task"] != RUN or isinstance(_arguments(message)[0], str):
                    yield queue, text


class Segmind:
    """The sandbox's faults, which are counted as they fire, and its trainings."""

    def __init__(self, scene: Scene, agenda: Agenda, client: Any) -> None:
        self._control = scene.control
        self._agenda = agenda
        self._redis = client
        self._armed: dict[int, str] = {}
        self._fired: Counter[str] = Counter()

    @property
    def acts(self) -> Mapping[str, Action]:
        """What can be done to it, by kind, besides `arm`."""
        return {"training hidden": self._hide, "weights private": self._make_private}

    def arm(self, kind: str, fault: dict[str, Any]) -> bool:
        """Arm a fault for some time."""
        number = self._control.add_fault(**fault)
        self._armed[number] = kind

        def disarm() -> bool:
            self._count(number)
            self._control.remove_fault(number)
            return True

        self._agenda.after(FAULT_LASTS, f"{kind} is over", disarm)
        return True

    def calm(self) -> Counter[str]:
        """Disarm all faults and let all trainings go on; returns how often each kind fired."""
        self._count()
        self._control.reset("faults")
        self._control.change_settings(private_weights=False)
        for training in self._control.trainings():
            if training["held"]:
                self._control.change_training(training["finetune_id"], hold=False)
        return self._fired

    def _count(self, number: int | None = None) -> None:
        for fault in self._control.faults():
            if number in {None, fault["id"]}:
                self._fired[self._armed[fault["id"]]] += fault["fired"]

    def _hide(self, args: dict[str, Any]) -> bool:
        """Hide a training that some job is known to own: from a list it can then not be found again."""
        owned = set(self._redis.hkeys(keys.owners()))
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

        self._agenda.after(args["seconds"], "weights public", open_again)
        return True


class Hooks:
    """Webhooks that are not Segmind's. ``wrong`` says which were taken and should not have been."""

    def __init__(self, urls: Mapping[str, str], client: Any) -> None:
        self.wrong: list[str] = []
        self._urls = urls
        self._redis = client

    @property
    def acts(self) -> Mapping[str, Action]:
        """What can be sent, by kind."""
        return {"hooks forged": self._forge, "hooks flood": self._flood}

    def _forge(self, args: dict[str, Any]) -> bool:
        """Hooks with the right token and a lie, which are taken as a hint, and hooks with a wrong one."""
        owned = [*self._redis.hkeys(keys.owners()), "none"]
        with httpx.Client(timeout=5, trust_env=False) as client:
            for url in self._urls.values():
                for number in range(args["count"]):
                    client.post(url, json={"status": "FAILED", "finetune_id": owned[number % len(owned)]})
                status = client.post(f"{url}x", json={}).status_code
                if status != httpx.codes.NOT_FOUND:
                    self.wrong.append(f"a hook with a wrong token was answered with {status}")
        return True

    def _flood(self, args: dict[str, Any]) -> bool:
        url = spread(sorted(self._urls.values()), args["pick"])

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
