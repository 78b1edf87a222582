"""Data in and out beside the usual tools: downloads and uploads beside curl, the dataset check beside unzip."""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image
from rich.console import Console

from finetune_bench import report
from finetune_bench.ground import START, clean_environment, python
from finetune_bench.step import SMALL
from finetune_queue.local.processes import Child, ProcessError
from segmind_sandbox.weights import Weights

GIGABIT = 125_000_000
"""Bytes a second of a link of 1 Gbit/s."""

LINKS = {"1 Gbit/s": GIGABIT, "as fast as the machine": None}
MB = 1_000_000
_PIECE = 1 << 20

CURL, CURL_SYNC, CURL_SUMS = "curl", "curl, sync", "curl, sha256sum, md5sum"
OURS, OURS_STORED = "ours", "ours, stored"
"""Downloaded to the disk, hashed and verified; and then in its place in an artifact folder, by its bytes and name."""

Rows = list[dict[str, Any]]
Times = dict[str, float]
"""Seconds of each way to do the same transfer."""


def measure(folder: Path, console: Console, asked: argparse.Namespace) -> dict[str, Rows]:
    """Measure everything, print it and return it.

    Raises:
        ProcessError: curl is not there, or a part failed.
    """
    if shutil.which("curl") is None:
        raise ProcessError("curl, which the transfers are compared with, is not on the PATH.")
    served, scratch = folder / "served", folder / "scratch"
    served.mkdir(parents=True)
    scratch.mkdir()
    quick: bool = asked.quick
    weights = [_weights(served, size) for size in ((MB, 20 * MB) if quick else (MB, 100 * MB, 2_000 * MB))]
    dataset = _dataset(served, (10 if quick else 99) * MB)
    found = {
        "Downloads beside curl, MB/s": _throughput(served, scratch, weights, console, quick=quick),
        "Uploads beside curl, MB/s": _throughput(served, scratch, [dataset], console, quick=quick),
        "Memory of the process that does it": _memory(served, scratch, weights, dataset, console),
        "The check of a dataset": _checks(dataset, console, runs=2 if quick else 5),
    }
    for title, rows in found.items():
        report.print_rows(title, rows, Console())
    return found


def _weights(folder: Path, size: int) -> Path:
    """Make real safetensors, served as Google's storage does."""
    path = folder / f"weights-{size // MB}.safetensors"
    made = Weights(path.stem, 1, size)
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(made.read(file.tell(), _PIECE))
    digests = made.digests()
    _served_with(path, {"ETag": digests.etag, "x-goog-hash": ",".join(digests.goog_hashes)})
    return path


def _dataset(folder: Path, size: int) -> Path:
    """Make photos of about 3 MB with captions, stored without compression, as our packer does."""
    path = folder / "dataset.zip"
    with zipfile.ZipFile(path, "w") as archive:
        number = 0
        while path.stat().st_size < size - 4 * MB:
            number += 1
            with archive.open(f"photo{number}.jpg", "w") as target:
                _photo().save(target, "JPEG", quality=95)
            archive.writestr(f"photo{number}.txt", f"a photo of 1MAN, number {number}\n")
    _served_with(path, {"ETag": '"a"'})
    return path


def _photo() -> Image.Image:
    """Return colours that no other photo has, with as much detail as a camera's."""
    size = (2600, 1800)
    colours = Image.frombytes("RGB", (8, 8), os.urandom(8 * 8 * 3)).resize(size)
    return Image.blend(colours, Image.effect_noise(size, 80).convert("RGB"), 0.5)


def _served_with(path: Path, headers: Mapping[str, str]) -> None:
    path.with_name(path.name + ".headers").write_text(json.dumps(dict(headers)))


def _throughput(served: Path, scratch: Path, files: Sequence[Path], console: Console, *, quick: bool) -> Rows:
    rows: Rows = []
    for link, rate in LINKS.items():
        with _file_server(served, scratch, rate) as url:
            for file in files:
                size = file.stat().st_size
                runs = 2 if quick else 3 if size > 500 * MB else 7
                console.print(f"transfers: {file.name}, {link}, {runs} times each", style="dim")
                found = [_once(f"{url}/{file.name}", file, scratch) for _ in range(runs)]
                rows.append({"transfer": f"{size / MB:.0f} MB, {link}", **_compare(found, size)})
    return rows


def _once(url: str, file: Path, scratch: Path) -> Times:
    """Transfer a file by the usual tools, then by ours."""
    if file.suffix == ".zip":
        return _up_by_tools(url, file) | {OURS: float(_step("upload", url, str(file))["seconds"])}
    times: Times = {}
    for run in (_down_by_tools, _down_by_ours):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:  # what the one wrote and nobody reads is forgotten
            times |= run(url, Path(folder) / "got")
    return times


def _down_by_tools(url: str, got: Path) -> Times:
    curl = _curl(["-o", str(got), url])
    began = time.perf_counter()
    with got.open("rb") as file:
        os.fsync(file.fileno())  # as sync(1) does, without the start of a process
    synced = curl + time.perf_counter() - began
    return {CURL: curl, CURL_SYNC: synced, f"{CURL_SYNC}, sha256sum": synced + _timed("sha256sum", got)}


def _down_by_ours(url: str, got: Path) -> Times:
    took = _step("weights", url, str(got))
    return {OURS: float(took["downloaded"]), OURS_STORED: float(took["seconds"])}


def _up_by_tools(url: str, file: Path) -> Times:
    curl = _curl(["-T", str(file), "-H", "Content-Type: application/zip", "-H", "x-amz-acl: public-read", url])
    return {CURL: curl, CURL_SUMS: curl + _timed("sha256sum", file) + _timed("md5sum", file)}


def _compare(found: Sequence[Times], size: int) -> dict[str, Any]:
    """Return the rate of each way, and of ours beside that of curl which gives as much."""
    row: dict[str, Any] = {name: round(size / median(each[name] for each in found) / MB) for name in found[0]}
    for ours, curl in ((OURS, CURL), (OURS, CURL_SYNC), (OURS_STORED, CURL_SYNC), (OURS, CURL_SUMS)):
        if {ours, curl} <= found[0].keys():
            row[f"{ours} of {curl}"] = round(median(each[curl] / each[ours] for each in found), 2)
    return row


def _curl(arguments: Sequence[str]) -> float:
    """Return curl's own word of how long the transfer took, so that its start does not count."""
    return float(_run(["curl", "--silent", "--fail", "--write-out", "%{stderr}%{time_total}", *arguments]).stderr)


def _timed(tool: str, file: Path) -> float:
    began = time.perf_counter()
    _run([tool, str(file)])
    return time.perf_counter() - began


def _memory(served: Path, scratch: Path, weights: Sequence[Path], dataset: Path, console: Console) -> Rows:
    console.print("transfers: memory", style="dim")
    rows: Rows = []
    with _file_server(served, scratch, None) as url:
        for file in weights:
            rows.append(_grown(f"weights of {file.stat().st_size / MB:.0f} MB, downloaded, verified and stored",
                               _step("weights", f"{url}/{file.name}", str(scratch / file.name))))  # fmt: skip
            shutil.rmtree((scratch / file.name).with_suffix(".stored"))
            (scratch / file.name).unlink()
        what = f"a dataset of {dataset.stat().st_size / MB:.0f} MB, uploaded"
        rows.append(_grown(what, _step("upload", f"{url}/{dataset.name}", str(dataset))))
    return rows


def _grown(what: str, took: Mapping[str, Any]) -> dict[str, Any]:
    return {"what": what, "grown by, MB": round(took["grown"] / MB, 1), "peak, MB": round(took["peak"] / MB)}


def _checks(dataset: Path, console: Console, *, runs: int) -> Rows:
    console.print(f"transfers: the check of {dataset.stat().st_size / MB:.0f} MB, {runs} times each", style="dim")
    contestants: dict[str, Callable[[], Mapping[str, Any]]] = {
        "ours: every picture decoded, every byte checked": lambda: _step("check", str(dataset)),
        "Python's zipfile.testzip: checksums alone": lambda: _step("testzip", str(dataset)),
    }
    if shutil.which("unzip"):
        contestants["unzip -t: checksums alone"] = lambda: _unzip(dataset)
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in contestants}
    for _ in range(runs):
        for name, run in contestants.items():
            found[name].append(run())
    size = dataset.stat().st_size
    return [
        {
            "what": name,
            "seconds": round(seconds := median(each["seconds"] for each in took), 2),
            "MB/s": round(size / seconds / MB),
            "peak, MB": "-" if took[0]["peak"] is None else round(max(each["peak"] for each in took) / MB),
        }
        for name, took in found.items()
    ]


def _unzip(path: Path) -> Mapping[str, Any]:
    began = time.perf_counter()
    _run(["unzip", "-tqq", str(path)])
    # Its memory is not known: what the system says of it includes that of the process which started it.
    return {"seconds": time.perf_counter() - began, "peak": None}


def _step(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_run(python(["finetune_bench.step", *arguments])).stdout)
    return found


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program to its end.

    Raises:
        ProcessError: it failed.
    """
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise ProcessError(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done


@contextmanager
def _file_server(served: Path, scratch: Path, rate: int | None) -> Iterator[str]:
    (served / SMALL).write_bytes(bytes(1000))  # for each step's first transfer
    _served_with(served / SMALL, {"ETag": '"small"'})
    command = python(["finetune_bench.fileserver", str(served), *([] if rate is None else [str(rate)])])
    with Child("fileserver", command, env=clean_environment(), cwd=scratch, log=scratch / "fileserver.log") as child:
        yield child.wait_for_line(lambda line: line.startswith("http"), timeout=START).strip()
