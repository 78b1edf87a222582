"""The presigned PUT, as S3 takes and refuses it."""

import base64
import hashlib
import re
import socket
import xml.etree.ElementTree as ET
from urllib.parse import urlsplit

import pytest
import requests

from sandbox.calls import SIGNED, TIMEOUT, Api, put, raw_exchange, zip_bytes
from segmind_sandbox.testing import LiveSandbox
from support.until import until


def code_of(reply: requests.Response) -> tuple[int, str | None]:
    """Status and S3 error code."""
    assert reply.headers["Content-Type"].startswith("application/xml")
    error = ET.fromstring(reply.text)
    assert error.tag == "Error"
    assert error.findtext("Message")
    return reply.status_code, error.findtext("Code")


def head_of(url: str, *lines: str) -> bytes:
    parts = urlsplit(url)
    head = [f"PUT {parts.path}?{parts.query} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close", *lines]
    return "\r\n".join([*head, "", ""]).encode()


def test_the_links_have_the_shape_of_the_page(api: Api, other: Api) -> None:
    links = api.presign(name="my faces")
    shape = r"/storage/finetune-pipeline/uploads/([0-9a-f-]{36})/([0-9a-f-]{36})-my%20faces\.zip"
    found = re.fullmatch(shape, urlsplit(links["s3_url"]).path)
    assert found
    assert urlsplit(other.presign()["s3_url"]).path.split("/")[4] != found.group(1)
    assert links["presigned_url"].startswith(links["s3_url"] + "?")
    assert "X-Amz-SignedHeaders=content-type%3Bhost%3Bx-amz-acl" in links["presigned_url"]
    assert "X-Amz-SignedHeaders=content-type%3Bhost&" in api.presign(public=False)["presigned_url"] + "&"
    assert api.presign()["s3_url"] != api.presign()["s3_url"]


def test_a_public_upload_can_be_read_by_all(api: Api) -> None:
    links = api.presign()
    assert requests.get(links["s3_url"], timeout=TIMEOUT).status_code == 404
    data = zip_bytes()

    etag = put(links["presigned_url"], data).headers["ETag"]

    assert etag == f'"{hashlib.md5(data).hexdigest()}"'
    read = requests.get(links["s3_url"], timeout=TIMEOUT)
    assert (read.status_code, read.content) == (200, data)
    assert read.headers["Content-Type"] == "application/zip"
    head = requests.head(links["s3_url"], timeout=TIMEOUT)
    assert (head.headers["Content-Length"], head.headers["ETag"]) == (str(len(data)), etag)


def test_a_private_upload_cannot_be_read(api: Api) -> None:
    url = api.upload(public=False)
    assert code_of(requests.get(url, timeout=TIMEOUT)) == (403, "AccessDenied")
    assert requests.head(url, timeout=TIMEOUT).status_code == 403


def test_a_second_put_replaces_the_object(api: Api) -> None:
    links = api.presign()
    put(links["presigned_url"], b"first")
    second = zip_bytes()  # once: a ZIP holds the time at which it was made
    with requests.get(links["s3_url"], stream=True, timeout=TIMEOUT) as reading:
        put(links["presigned_url"], second)
        assert reading.content == b"first"
    assert requests.get(links["s3_url"], timeout=TIMEOUT).content == second


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-Type": "application/zip"}, "SignatureDoesNotMatch"),
        ({"x-amz-acl": "public-read"}, "SignatureDoesNotMatch"),
        (SIGNED | {"Content-Type": "application/octet-stream"}, "SignatureDoesNotMatch"),
        (SIGNED | {"x-amz-acl": "private"}, "SignatureDoesNotMatch"),
        (SIGNED | {"Host": "elsewhere.example"}, "SignatureDoesNotMatch"),
        (SIGNED | {"x-amz-meta-job": "7"}, "AccessDenied"),
    ],
)
def test_headers_other_than_the_signed_ones(api: Api, headers: dict[str, str], code: str) -> None:
    links = api.presign()
    assert code_of(put(links["presigned_url"], zip_bytes(), headers)) == (403, code)
    assert requests.head(links["s3_url"], timeout=TIMEOUT).status_code == 404


def test_a_private_link_refuses_the_public_acl(api: Api) -> None:
    assert code_of(put(api.presign(public=False)["presigned_url"], b"x", SIGNED)) == (403, "AccessDenied")


def test_a_changed_link(api: Api) -> None:
    links = api.presign()
    url, other_url = links["presigned_url"], api.presign()["s3_url"]
    query = url.partition("?")[2]
    assert code_of(put(f"{other_url}?{query}", b"x")) == (403, "SignatureDoesNotMatch")
    assert code_of(put(url.replace("X-Amz-Expires=3600", "X-Amz-Expires=9999"), b"x")) == (403, "SignatureDoesNotMatch")
    assert code_of(put(url + "0", b"x")) == (403, "SignatureDoesNotMatch")
    assert code_of(put(url + "%C3%A9", b"x")) == (403, "SignatureDoesNotMatch")
    for_ever = url.replace("X-Amz-Expires=3600", f"X-Amz-Expires={10**20}")
    assert code_of(put(for_ever, b"x")) == (403, "AuthorizationQueryParametersError")
    odd = url.replace("X-Amz-SignedHeaders=", "X-Amz-SignedHeaders=%FF")
    assert code_of(put(odd, b"x")) == (403, "AuthorizationQueryParametersError")
    assert code_of(put(f"{links['s3_url']}?X-Amz-Signature=0", b"x")) == (403, "AuthorizationQueryParametersError")
    assert code_of(put(links["s3_url"], b"x")) == (403, "AccessDenied")
    assert code_of(requests.get(url, timeout=TIMEOUT)) == (403, "SignatureDoesNotMatch")


def test_an_expired_link(api: Api, sandbox: LiveSandbox) -> None:
    sandbox.control.change_settings(link_seconds=1)
    links = api.presign()
    until(lambda: put(links["presigned_url"], b"x").status_code != 200, seconds=30)
    reply = put(links["presigned_url"], b"x")
    assert code_of(reply) == (403, "AccessDenied")
    assert "expired" in reply.text


def test_the_length_is_needed(api: Api) -> None:
    url = api.presign()["presigned_url"]
    assert code_of(put(url, iter([b"chunked"]))) == (501, "NotImplemented")
    reply = raw_exchange(url, head_of(url, *(f"{name}: {value}" for name, value in SIGNED.items())))
    assert reply.startswith(b"HTTP/1.1 411 ")
    assert b"<Code>MissingContentLength</Code>" in reply


def test_content_md5_is_checked(api: Api) -> None:
    url = api.presign()["presigned_url"]

    def with_md5(value: bytes) -> requests.Response:
        return put(url, b"data", SIGNED | {"Content-MD5": value.decode("latin-1")})

    assert with_md5(base64.b64encode(hashlib.md5(b"data").digest())).status_code == 200
    assert code_of(with_md5(base64.b64encode(hashlib.md5(b"other").digest()))) == (400, "BadDigest")
    assert code_of(with_md5(b"%%")) == (400, "InvalidDigest")
    assert code_of(with_md5(b"\xe9")) == (400, "InvalidDigest")


@pytest.mark.parametrize("leak", [{"x-api-key": "secret"}, {"Authorization": "Bearer secret"}])
def test_credentials_at_the_storage_host_are_refused_and_reported(
    api: Api, sandbox: LiveSandbox, leak: dict[str, str]
) -> None:
    links = api.presign()
    job = api.trained()
    assert code_of(put(links["presigned_url"], b"x", SIGNED | leak)) == (400, "InvalidArgument")
    for url in (links["s3_url"], job["cloud_storage_url"]):
        assert code_of(requests.get(url, headers=leak, timeout=TIMEOUT)) == (400, "InvalidArgument")
    assert sandbox.control.report()["key_leaks"] == 3


def test_an_upload_that_breaks_off_leaves_the_object_as_it_was(api: Api, sandbox: LiveSandbox) -> None:
    links = api.presign()
    put(links["presigned_url"], b"whole")
    parts = urlsplit(links["presigned_url"])
    lines = [*(f"{name}: {value}" for name, value in SIGNED.items()), "Content-Length: 1000"]
    with socket.create_connection((str(parts.hostname), parts.port or 0), timeout=TIMEOUT) as connection:
        connection.sendall(head_of(links["presigned_url"], *lines) + b"only a part")
    until(lambda: "client_gone" in sandbox.control.report()["calls"]["put"], seconds=TIMEOUT)
    assert requests.get(links["s3_url"], timeout=TIMEOUT).content == b"whole"


def test_other_methods(api: Api) -> None:
    url = api.upload()
    for method in ("POST", "DELETE", "PATCH"):
        assert code_of(requests.request(method, url, timeout=TIMEOUT)) == (405, "MethodNotAllowed")
