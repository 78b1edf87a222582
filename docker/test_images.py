"""Builds every image and runs them together, without Docker: `make image-test`, as root, with buildah installed.

The published base image is stood in for by one made of Debian's packages, unless BASE_IMAGE names one that is here.
buildah's chroot isolation gives a process the image's files, user and command, but no namespaces: what a container
runtime adds (a read-only root, dropped capabilities, health checks) is read from the image and the Compose file.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from finetune_queue.local.valkey import ValkeyServer, free_port
from support.collector import Collector
from support.images import make_dataset_zip
from support.until import until

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("worker", "gateway", "flower", "sandbox")
STAND_IN = "localhost/finetune-queue-base:stand-in"
UID = 10001
PACKAGES = "ca-certificates,python3,python3-venv,python3-pip"


def buildah(*words: str | Path, timeout: float = 600) -> str:
    """Run buildah and return what it printed; what it complains of is shown when it fails."""
    run = subprocess.run(["buildah", *map(str, words)], capture_output=True, text=True, timeout=timeout, check=False)
    assert run.returncode == 0, f"buildah {words[0]}: {run.stderr[-3000:]}"
    return run.stdout.strip()


def ask(url: str, *, body: bytes | None = None, kind: str = "application/json") -> Any:
    headers = {"Authorization": "Bearer local", "Content-Type": kind}
    request = urllib.request.Request(url, data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as reply:
        text = reply.read()
    return json.loads(text) if text else None


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The base image: the one that BASE_IMAGE names, or a stand-in of Debian's packages, made once on a machine."""
    assert shutil.which("buildah"), "buildah is needed (on Debian: apt-get install buildah debootstrap crun)"
    assert os.geteuid() == 0, "building images takes root here"
    if named := os.environ.get("BASE_IMAGE"):
        return named
    if STAND_IN not in buildah("images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
        folder = tmp_path_factory.mktemp("debian")
        debootstrap = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(folder)]
        subprocess.run(debootstrap, check=True, stdout=subprocess.DEVNULL, timeout=600)
        container = buildah("from", "scratch")
        buildah("copy", container, folder, "/")
        buildah("config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        buildah("commit", "--format", "docker", container, STAND_IN)
        buildah("rm", container)
    return STAND_IN


@pytest.fixture(scope="module")
def images(base: str) -> dict[str, str]:
    """Every image by its target."""
    options = ["--isolation", "chroot", "--network", "host", "--pull-never", "--format", "docker", "--layers"]
    # The builder's own certificates, should it sit behind a proxy with one of its own.
    options += ["-v", "/etc/ssl/certs:/etc/ssl/certs:ro", "--build-arg", f"BASE_IMAGE={base}"]
    names = {target: f"localhost/finetune-queue-{target}:test" for target in TARGETS}
    for target, name in names.items():
        buildah("bud", *options, "-f", ROOT / "docker/Dockerfile", "--target", target, "-t", name, ROOT)
    return names


class Container:
    """A container of an image, on this machine's network, that runs the image's own command as the image's user."""

    def __init__(self, image: str, folder: Path) -> None:
        self.id = buildah("from", "--pull-never", image)
        self.config = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, *command: str, settings: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start the command, or else the image's."""
        words = [*command] or [*self.config["Entrypoint"], *self.config["Cmd"]]
        options = ["--isolation", "chroot", "-v", f"{self._folder}:/var/lib/finetune"]
        for name, value in (settings or {}).items():
            options += ["--env", f"{name}={value}"]
        with (self._folder.parent / f"{self.id}.log").open("ab") as log:
            process = subprocess.Popen(
                ["buildah", "run", *options, self.id, "--", *words], stdout=log, stderr=log, start_new_session=True
            )
        self._process = process
        return process

    def close(self) -> None:
        """End what runs, and remove the container."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        buildah("rm", self.id)


@pytest.fixture
def start(images: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Container]]:
    """Makes a container of a target's image."""
    shared = tmp_path / "data"
    for part in (shared, shared / "work"):
        part.mkdir()
        os.chown(part, UID, UID)
    with ExitStack() as stack:

        def made(target: str) -> Container:
            container = Container(images[target], shared)
            stack.callback(container.close)
            return container

        yield made


@pytest.mark.timeout(1200)
def test_the_images_are_small_and_say_how_they_run(images: dict[str, str]) -> None:
    for target, image in images.items():
        config = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]
        assert config["User"] == f"{UID}:{UID}", target
        assert config["Entrypoint"][0] != "/bin/sh", target  # exec form: the service is PID 1
        assert config["Healthcheck"]["Test"][0] == "CMD", target
        layers = json.loads(buildah("inspect", "--type", "image", image))["OCIv1"]["rootfs"]["diff_ids"]
        assert len(layers) < 10, target


@pytest.mark.timeout(600)
def test_a_job_goes_through_them(start: Callable[..., Container], tmp_path: Path) -> None:
    ports = {name: free_port() for name in (*TARGETS, "probe")}
    with ValkeyServer(tmp_path / "valkey") as valkey, closing(Collector()) as collector:
        lines = (ROOT / "docker/segmind.env").read_text().splitlines()
        settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        settings |= {
            "FINETUNE_REDIS_URL": valkey.url,
            "SEGMIND_BASE_URL": f"http://127.0.0.1:{ports['sandbox']}",
            "FINETUNE_PROBE_PORT": str(ports["probe"]),
            "FINETUNE_GATEWAY_TOKENS": json.dumps({"local": hashlib.sha256(b"local").hexdigest()}),
            "FLOWER_BASIC_AUTH": "finetune:local",
            **collector.env,
        }
        containers = {target: start(target) for target in TARGETS}
        processes = {}
        for target in ("sandbox", "gateway", "flower"):
            container = containers[target]
            command = [*container.config["Entrypoint"], *container.config["Cmd"]]
            given = [f"--port={ports[target]}" if word.startswith("--port=") else word for word in command]
            processes[target] = container.run(*given, settings=settings)
        url = f"http://127.0.0.1:{ports['sandbox']}/_sandbox/health"
        until(partial(_well, url), seconds=60)
        processes["worker"] = containers["worker"].run(settings=settings)
        for name, path in {"probe": "readyz", "gateway": "readyz", "flower": "healthcheck"}.items():
            until(partial(_well, f"http://127.0.0.1:{ports[name]}/{path}"), seconds=90)

        gateway = f"http://127.0.0.1:{ports['gateway']}"
        archive = make_dataset_zip(tmp_path / "faces.zip")
        dataset = ask(f"{gateway}/v1/datasets", body=archive.read_bytes(), kind="application/zip")["dataset"]
        request = {"name": "faces", "dataset": dataset, "trigger_word": "1MAN", "instance_prompt": "photo of 1MAN"}
        job = ask(f"{gateway}/v1/jobs", body=json.dumps(request).encode())["job_id"]
        until(lambda: ask(f"{gateway}/v1/jobs/{job}")["state"] in {"succeeded", "failed"}, seconds=60)
        ended = ask(f"{gateway}/v1/jobs/{job}")
        assert ended["state"] == "succeeded"
        collector.wait_for(ended["traceparent"].split("-")[1], "POST /v1/jobs", "finetune.publish")
        [weights] = (tmp_path / "data").rglob("weights.safetensors")
        assert weights.stat().st_uid == UID

        worker = processes["worker"]
        os.kill(_innermost(worker.pid), signal.SIGTERM)
        assert worker.wait(timeout=40) == 0


def _innermost(pid: int) -> int:
    """Return the service's own process, inside of buildah's, each begun by any thread of the one around it."""
    while children := [child for task in Path(f"/proc/{pid}/task").iterdir() for child in _children(task)]:
        [pid] = children
    return pid


def _children(task: Path) -> list[int]:
    try:
        return [int(word) for word in (task / "children").read_text().split()]
    except FileNotFoundError:  # the thread has ended
        return []


def _well(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:  # not listening yet, or not ready
        return False
