"""The calls that leave a process, named and counted as they happen, and a death at any one of them.

Patched are the few functions that every call goes through: commands and pipelines of redis-py, the connection, the
parts of the request and the reply of http.client, and what changes files in `os`.

A point is reached *before* its call. No points are needed after calls: between two calls a process changes only itself
and files that nobody reads under their names so far. So to die with an answer in hand is the same as to die before the
next call. Python's audit events (`Points.audit`) show that no call is missing among the points.
"""

import hashlib
import http.client
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import redis
from redis.client import Pipeline
from urllib3.connection import HTTPConnection

DIED = 99
"""The exit code of a process that died at its point."""

_FILE_CALLS = ("write", "replace", "rename", "unlink", "ftruncate", "mkdir", "rmdir")

_CHANGES = frozenset(
    {
        *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.kill"),
        *("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.sendto"),
    }
)
"""What a process does to the world outside, as the interpreter calls it (Python's table of audit events)."""


class _Now(threading.local):
    """What a thread is in the middle of. By thread, as another one than the stages' sends the counters."""

    inside = False  # a call that is a point already, or what `unwatched` holds: nothing in it is a point
    calling = 0  # how deep in calls that are points: their audit events are expected


class Points:
    """Names every call as ``part: call #n``, and ends the process at once where it is told to."""

    def __init__(self, die_at: str | None = None) -> None:
        self.part = "start"  # what the worker does now; the first word of each point's name
        self.reached: list[str] = []  # points, in order
        self.missed: list[str] = []  # audit events that no point stands for
        self._die_at = die_at
        self._times: Counter[str] = Counter()
        self._scripts = _script_names()
        self._now = _Now()

    def reach(self, call: str) -> None:
        """Note that a call is about to be made."""
        name = f"{self.part}: {call}"
        self._times[name] += 1
        point = f"{name} #{self._times[name]}"
        if point == self._die_at:
            os._exit(DIED)  # no finally, no except, no atexit: as SIGKILL, but at an exact place
        self.reached.append(point)

    def passed(self, call: str) -> None:
        """Called after each command to Redis, before its caller has the answer; for subclasses."""

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Look at things without that being a point."""
        self._now.inside = True
        try:
            yield
        finally:
            self._now.inside = False

    def patch(self, put: Callable[[Any, str, Any], None] = setattr) -> None:
        """Watch the calls of this process from now on: for good, or as long as ``put`` makes it."""
        self._put = put
        self._patch(redis.Redis, "execute_command", lambda _self, *args, **_: f"redis {self._command(args)}")
        self._patch(Pipeline, "execute", lambda pipe, *_, **__: f"redis [{self._commands(pipe)}]")
        self._patch(HTTPConnection, "connect", lambda *_: "http connect")
        self._patch(http.client.HTTPConnection, "send", lambda _self, data: f"http send {_kind(data)}")
        self._patch(HTTPConnection, "getresponse", lambda *_, **__: "http reply")
        for call in _FILE_CALLS:
            self._patch(os, call, lambda *_, _call=call, **__: f"file {_call}")

    def audit(self) -> None:
        """Note every change outside that no point stands for, as long as this process lives."""
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _CHANGES and not self._now.calling and not self._now.inside:
            self.missed.append(f"{self.part}: {event} {args}")

    def _patch(self, owner: Any, name: str, describe: Callable[..., str]) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if self._now.inside:  # a pipeline looks for its scripts by commands of its own: one point in all
                return original(*args, **kwargs)
            call = describe(*args, **kwargs)
            self.reach(call)
            if owner not in {redis.Redis, Pipeline}:
                self._now.calling += 1
                try:
                    return original(*args, **kwargs)
                finally:
                    self._now.calling -= 1
            with self.unwatched():
                reply = original(*args, **kwargs)
            self.passed(call)
            return reply

        self._put(owner, name, watched)

    def _commands(self, pipe: Any) -> str:
        return " ".join(self._command(command[0]) for command in pipe.command_stack)

    def _command(self, args: Any) -> str:
        return self._scripts.get(args[1], args[0]) if args[0] == "EVALSHA" else str(args[0])


def _script_names() -> dict[str, str]:
    found = files("finetune_queue.store").joinpath("lua").iterdir()
    return {hashlib.sha1(path.read_bytes()).hexdigest(): path.name for path in found}


def _kind(data: Any) -> str:
    return "headers" if isinstance(data, bytes) and b" HTTP/1.1\r\n" in data[:4096] else "body"
