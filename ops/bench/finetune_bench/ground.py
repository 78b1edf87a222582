"""What every benchmark needs: a dataset, a sandbox, and an environment in which nothing reaches a real account."""

import io
import json
import os
import sys
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from finetune_queue.local.processes import Child

BENCH = Path(__file__).resolve().parents[1]
"""Where this package and the other contestants' modules lie."""

START = 60.0
"""Seconds that a process may take to be ready."""

WEIGHTS_BYTES = 65_536

_FOREIGN = ("FINETUNE_", "SEGMIND_", "SANDBOX_", "CELERY_", "BENCH_")


def clean_environment() -> dict[str, str]:
    """Return this process's environment without anything that could set a contestant or reach a real account."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    path = os.pathsep.join([str(BENCH), *filter(None, [kept.get("PYTHONPATH")])])
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}


def python(arguments: Sequence[str]) -> list[str]:
    """Return the command that runs a module with this interpreter."""
    return [sys.executable, "-m", *arguments]


def make_dataset(folder: Path, *, pictures: int = 4, side: int = 64) -> Path:
    """Make a ZIP of pictures with captions. By default it is small, so that its check takes little of a run."""
    folder.mkdir(parents=True)
    path = folder / "faces.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(pictures):
            picture = io.BytesIO()
            colours = Image.frombytes("RGB", (8, 8), os.urandom(8 * 8 * 3))
            colours.resize((side, side)).save(picture, "JPEG")
            archive.writestr(f"photo{number}.jpg", picture.getvalue())
            archive.writestr(f"photo{number}.txt", f"a photo of 1MAN, number {number}\n")
    return path


def start_sandbox(folder: Path, settings: Mapping[str, str]) -> tuple[Child, dict[str, Any]]:
    """Start a sandbox; returns it and what it says of itself: ``base_url`` and ``api_keys``.

    Raises:
        ProcessError: it ended or was not ready in time.
    """
    env = {**clean_environment(), "SANDBOX_WEIGHTS_BYTES": str(WEIGHTS_BYTES), **settings}
    child = Child("sandbox", python(["segmind_sandbox"]), env=env, cwd=folder, log=folder / "sandbox.log").start()
    try:
        ready: dict[str, Any] = json.loads(child.wait_for_line(lambda line: line.startswith("{"), timeout=START))
    except BaseException:
        child.stop()
        raise
    return child, ready


def ask_sandbox(api_url: str, what: str) -> dict[str, Any]:
    """Return an answer of the sandbox's control API."""
    with urllib.request.urlopen(f"{api_url}/_sandbox/{what}", timeout=30) as reply:  # noqa: S310 - our own sandbox
        found: dict[str, Any] = json.load(reply)
        return found
