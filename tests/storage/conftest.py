"""A real S3 API (moto's server) and places on it."""

import uuid
from collections.abc import Iterator
from typing import Any

import boto3  # type: ignore[import-untyped]
import pytest
from moto.server import ThreadedMotoServer

from finetune_queue.storage import Place


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of a server of this test process."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The same API by its own library, with the environment set as a worker's would be."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    yield client
    client.close()


@pytest.fixture
def bucket(s3: Any) -> str:
    """A new bucket."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest) -> Place:
    """The same tests for both kinds of place."""
    if request.param == "file":
        return Place(f"file://{request.getfixturevalue('tmp_path')}/store")
    return Place(f"s3://{request.getfixturevalue('bucket')}/some/prefix")
