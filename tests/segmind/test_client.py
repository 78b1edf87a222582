"""The requests as the specification's curl lines send them, and replies as its samples show them."""

import json
from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.policy import HTTP
from urllib.parse import parse_qs

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from finetune_worker.segmind.client import SegmindClient
from finetune_worker.segmind.errors import MalformedReply, RateLimited, Rejected, SegmindError, Unavailable
from finetune_worker.segmind.models import SubmitRequest
from wire.rawserver import Heard, RawServer, Wire, answering

KEY = "SG_test_0123456789"


class Api:
    """Answers every request with one reply and remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.body: object = {}

    def answer(self, wire: Wire, heard: Heard) -> None:
        self.heard.append(heard)
        wire.reply(200, self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode())


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def server(api: Api) -> Iterator[RawServer]:
    with RawServer(answering(api.answer)) as server:
        yield server


@pytest.fixture
def client(server: RawServer) -> Iterator[SegmindClient]:
    with SegmindClient(server.url, SecretStr(KEY), connect_timeout=5, read_timeout=5, call_timeout=10) as client:
        yield client


REQUEST = SubmitRequest(
    name="job-1",
    data_source_path="https://bucket.example/x.zip",
    instance_prompt="1MAN, running in brown suit",
    trigger_word="1MAN",
    advance_parameters={"steps": 2000, "face_crop": False, "finetune_type": "LORA"},
)


def test_submit_sends_the_documented_body(client: SegmindClient, api: Api) -> None:
    api.body = {"status": "REQUESTED", "finetune_id": "ft-1", "name": "job-1"}
    reply = client.submit(REQUEST)
    assert (reply.finetune_id, reply.status, reply.name) == ("ft-1", "REQUESTED", "job-1")
    (heard,) = api.heard
    assert (heard.method, heard.target) == ("POST", "/finetune/request/submit")
    assert heard.headers["content-type"] == "application/json"
    assert heard.headers["x-api-key"] == KEY
    assert "transfer-encoding" not in heard.headers
    assert json.loads(heard.body) == {
        "name": "job-1",
        "data_source_path": "https://bucket.example/x.zip",
        "instance_prompt": "1MAN, running in brown suit",
        "trigger_word": "1MAN",
        "base_model": "FAST_FLUX",
        "theme": "subject",
        "segmind_public": False,
        "advance_parameters": {"steps": 2000, "face_crop": False, "finetune_type": "LORA"},
    }


def test_submit_passes_fields_of_sibling_models_on(client: SegmindClient, api: Api) -> None:
    api.body = {"request_id": "ft-2", "queue": "long"}
    reply = client.submit(SubmitRequest.model_validate(REQUEST.model_dump() | {"machine_type": "H100", "theme": None}))
    assert reply.finetune_id == "ft-2"
    assert reply.model_extra == {"queue": "long"}
    sent = json.loads(api.heard[0].body)
    assert sent["machine_type"] == "H100"
    assert "theme" not in sent


def test_a_submit_never_uses_a_kept_connection(client: SegmindClient, api: Api, server: RawServer) -> None:
    api.body = {"finetune_id": "ft-1"}
    client.details("ft-1")
    client.details("ft-1")
    assert server.connections == 1
    client.submit(REQUEST)
    client.submit(REQUEST)
    assert server.connections == 3
    assert [heard.headers.get("connection") for heard in api.heard][2:] == ["close", "close"]


def test_details_is_a_get_with_a_json_body(client: SegmindClient, api: Api) -> None:
    api.body = {
        "finetune": {
            "id": "row-9",
            "finetune_id": "ft-1",
            "name": "job-1",
            "data_source_path": "https://b.example/d.zip",
            "status": "AVAILABLE",
            "slug": "model-slug",
            "public_model": False,
            "error_message": None,
            "cloud_storage_url": "https://b.example/model.safetensors",
            "created_ts": "2025-01-01T00:00:00Z",
        }
    }
    found = client.details("ft-1")
    (heard,) = api.heard
    assert (heard.method, heard.target) == ("GET", "/finetune/request/details")
    assert json.loads(heard.body) == {"request_id": "ft-1"}
    assert heard.headers["content-type"] == "application/json"
    assert (found.finetune_id, found.name) == ("ft-1", "job-1")
    assert found.available
    assert found.slug == "model-slug"
    assert found.created_ts is not None
    assert found.created_ts.isoformat() == "2025-01-01T00:00:00+00:00"
    assert found.model_extra == {"id": "row-9", "public_model": False}
    api.body["finetune"]["created_ts"] = "yesterday"
    assert client.details("ft-1").created_ts is None


def test_presign_is_a_get_with_a_json_body_and_hides_its_url(client: SegmindClient, api: Api) -> None:
    secret = "https://b.s3.amazonaws.com/uploads/u/f-x.zip?X-Amz-Date=20260101T000000Z&X-Amz-Expires=900&X-Amz-Signature=feed"
    api.body = {"presigned_url": secret, "s3_url": "https://b.s3.amazonaws.com/uploads/u/f-x.zip", "url": secret}
    upload = client.presign_upload("job-1")
    (heard,) = api.heard
    assert (heard.method, heard.target) == ("GET", "/finetune/request/upload/pre-signed-url")
    assert json.loads(heard.body) == {"name": "job-1", "extension": ".zip", "public": True}
    assert upload.presigned_url.get_secret_value() == secret
    assert "feed" not in f"{upload!r} {upload}"
    assert upload.expires_at is not None
    assert upload.expires_at.isoformat() == "2026-01-01T00:15:00+00:00"


@pytest.mark.parametrize(("public", "text"), [(True, "True"), (False, "False")])
def test_access_is_a_put_of_a_multipart_form(client: SegmindClient, api: Api, *, public: bool, text: str) -> None:
    api.body = b"200"
    client.set_access("ft-1", public=public)
    (heard,) = api.heard
    assert (heard.method, heard.target) == ("PUT", "/finetune/request/access-update")
    message = message_from_bytes(
        b"Content-Type: " + heard.headers["content-type"].encode() + b"\r\n\r\n" + heard.body, policy=HTTP
    )
    parts = {part.get_param("name", header="content-disposition"): part.get_payload() for part in message.iter_parts()}
    assert parts == {"request_id": "ft-1", "segmind_public": text}
    assert b"filename" not in heard.body


def test_access_that_says_error_with_a_success_is_no_success(client: SegmindClient, api: Api) -> None:
    api.body = {"error": "not yours"}
    with pytest.raises(Rejected, match="not yours"):
        client.set_access("ft-1", public=True)
    api.body = {"status": 200, "message": "updated", "error": None}
    client.set_access("ft-1", public=True)


@pytest.mark.parametrize("body", [b"200", b" 201\n", b'"200"', b"", b'{"status": 200}', b'{"status": "200"}'], ids=repr)
def test_access_is_changed_when_the_body_says_so_or_nothing(client: SegmindClient, api: Api, body: bytes) -> None:
    api.body = body
    client.set_access("ft-1", public=False)


@pytest.mark.parametrize(
    ("body", "kind", "code"),
    [
        (b"404", Rejected, "not_found"),
        (b'"404"', Rejected, "not_found"),
        (b'{"status": 403}', Rejected, "forbidden"),
        (b'{"status": "403", "message": "no"}', Rejected, "forbidden"),
        (b"429", RateLimited, "rate_limited"),
        (b"500", Unavailable, "server_error"),
        (b"0", MalformedReply, "malformed_reply"),
        (b"null", MalformedReply, "malformed_reply"),
        (b"false", MalformedReply, "malformed_reply"),
        (b"true", MalformedReply, "malformed_reply"),
        (b"{}", MalformedReply, "malformed_reply"),
        (b'{"message": "Unauthorized"}', MalformedReply, "malformed_reply"),
        (b'{"status": "error"}', Rejected, "request_rejected"),
        (b"Unauthorized", MalformedReply, "malformed_reply"),
    ],
    ids=repr,
)
def test_a_body_that_does_not_confirm_it_is_no_change_of_access(
    client: SegmindClient, api: Api, body: bytes, kind: type[SegmindError], code: str
) -> None:
    api.body = body
    with pytest.raises(kind) as caught:
        client.set_access("ft-1", public=False)
    assert (type(caught.value), caught.value.code) == (kind, code)
    if b"Unauthorized" in body:
        assert "it said: Unauthorized" in caught.value.detail


def test_a_web_page_in_place_of_the_answer_is_no_change_of_access(client: SegmindClient, api: Api) -> None:
    api.body = b"\n<!doctype html><title>We will be back soon</title>"
    with pytest.raises(MalformedReply, match="web page"):
        client.set_access("ft-1", public=False)


@pytest.mark.parametrize("quote", ["", '"'])
def test_private_link_is_a_get_with_a_form(client: SegmindClient, api: Api, quote: str) -> None:
    link = "https://storage.example/m.safetensors?X-Goog-Signature=feed"
    api.body = f"{quote}{link}{quote}\n".encode()
    assert client.private_link("https://storage.example/m.safetensors?a=b&c=d") == link
    (heard,) = api.heard
    assert (heard.method, heard.target) == ("GET", "/finetune/request/file/download")
    assert heard.headers["content-type"] == "application/x-www-form-urlencoded"
    assert parse_qs(heard.body.decode()) == {"cloud_storage_url": ["https://storage.example/m.safetensors?a=b&c=d"]}


@pytest.mark.parametrize("body", [b"", b"null", b"http://plain.example/x", b"file:///etc/passwd", b"\xff\xfe"])
def test_a_link_that_may_not_be_followed_is_malformed(client: SegmindClient, api: Api, body: bytes) -> None:
    api.body = body
    with pytest.raises(MalformedReply):
        client.private_link("https://storage.example/m.safetensors")


def test_credits(client: SegmindClient, api: Api) -> None:
    api.body = {"credits": 1.5, "free-credits": 0.25}
    found = client.credits()
    assert (api.heard[0].method, api.heard[0].target) == ("GET", "/v1/get-user-credits")
    assert (found.credits, found.free_credits, found.total) == (1.5, 0.25, 1.75)


def test_every_call_names_the_client_and_keeps_no_cookie() -> None:
    heard: list[Heard] = []

    def answer(wire: Wire, request: Heard) -> None:
        heard.append(request)
        wire.reply(200, b'{"credits": 1}', Set_Cookie="a=b; Path=/")

    with RawServer(answering(answer)) as other, SegmindClient(other.url + "/", SecretStr(KEY)) as caller:
        caller.credits()
        caller.credits()
    assert all(request.headers["user-agent"].startswith("finetune-queue/") for request in heard)
    assert not any("cookie" in request.headers for request in heard)


def test_one_log_line_for_each_call(client: SegmindClient, api: Api) -> None:
    api.body = {"credits": 1}
    with capture_logs() as logs:
        client.credits()
        api.body = []
        with pytest.raises(MalformedReply):
            client.credits()
        api.body = [{"finetune_id": "a"}, {}]
        list(client.list_finetunes())
    assert [entry["event"] for entry in logs if entry["log_level"] == "info"] == ["segmind_call"] * 3
    first, second, _, third = logs
    assert (first["operation"], first["status"], first["outcome"]) == ("credits", 200, "ok")
    assert first["duration_s"] >= 0
    assert second["outcome"] == "malformed_reply"
    assert (third["items"], third["skipped"], third["complete"]) == (2, 1, True)
    assert KEY not in str(logs)


@pytest.mark.parametrize("key", ["", " SG", "SG\n", "SG\u20ac", "SG\x00"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ValueError, match="API key") as caught:
        SegmindClient("https://api.segmind.com", SecretStr(key))
    assert not key.strip() or key not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://api.segmind.com", "ftp://api.segmind.com", "https://", "https://u:p@x.example"]
)
def test_a_base_url_that_would_show_the_key_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|https|user name"):
        SegmindClient(url, SecretStr(KEY))


def test_the_key_is_not_in_a_repr(client: SegmindClient) -> None:
    assert KEY not in repr(client) + repr(vars(client))


ANSWERS: dict[str, tuple[object, Callable[[SegmindClient], object]]] = {
    "details without an object": ([], lambda client: client.details("x")),
    "details without an id": ({"finetune": {"status": "AVAILABLE"}}, lambda client: client.details("x")),
    "details of null": ({"finetune": None}, lambda client: client.details("x")),
    "details of HTML": (b"<html>proxy</html>", lambda client: client.details("x")),
    "empty details": (b"", lambda client: client.details("x")),
    "deep details": (b"[" * 100_000, lambda client: client.details("x")),
    "details that are no text": (b"\xff\xfe\x00", lambda client: client.details("x")),
    "presign without a URL": ({"s3_url": "https://x"}, lambda client: client.presign_upload("x")),
    "presign with null": ({"presigned_url": None, "s3_url": "x"}, lambda client: client.presign_upload("x")),
    "credits as text": ({"credits": "many"}, lambda client: client.credits()),
    "a huge reply": (b'{"credits": 1}' + b" " * 4 * 1024 * 1024, lambda client: client.credits()),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_success_that_cannot_be_read(client: SegmindClient, api: Api, name: str) -> None:
    api.body, call = ANSWERS[name]
    with pytest.raises(MalformedReply) as caught:
        call(client)
    error = caught.value
    assert (error.code, error.status, error.retryable) == ("malformed_reply", 200, True)
    assert error.__cause__ is None
    assert error.__context__ is None
