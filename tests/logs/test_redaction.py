"""An attack on the redaction: no shape, spelling or way into the log may show a secret."""

import base64
import json
import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus, unquote

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from finetune_queue import redaction
from finetune_queue.gateway.hook_paths import hook_path
from finetune_queue.redaction import REDACTED, redact, redact_text, register_secrets

API_KEY = "SG_5f3a9c_key/with+odd=signs&%$"
PASSWORD = 'p@ss/w"ord\\é€'
ENVIRON = {"SEGMIND_API_KEY": API_KEY, "FINETUNE_REDIS_URL": f"redis://:{quote(PASSWORD, safe='')}@localhost:6379/0"}

SIGNED = (
    "https://bucket.s3.amazonaws.com/uploads/u1/f1-job.zip?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    "&X-Amz-Credential=AKIAHIDDEN%2F20260101%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20260101T000000Z"
    "&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature=feedfacefeedface&X-Amz-Security-Token=IQoJhidden"
)
SIGNED_SECRETS = ("AKIAHIDDEN", "feedfacefeedface", "IQoJhidden")

SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "percent": lambda text: quote(text, safe=""),
    "percent in lower case": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "form": quote_plus,
    "percent twice": lambda text: quote(quote(text, safe=""), safe=""),
    "percent in part": lambda text: quote(text[:9], safe="") + text[9:],
    "json": lambda text: json.dumps(text)[1:-1],
    "json in utf-8": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "json twice": lambda text: json.dumps(json.dumps(text)[1:-1])[1:-1],
    "repr": lambda text: repr(text)[1:-1],
    "ascii": lambda text: ascii(text)[1:-1],
    "repr of bytes": lambda text: repr(text.encode("latin-1", "backslashreplace"))[2:-1],
}


@dataclass
class Request:
    """As a library's object would show itself."""

    api_key: str
    url: str


def _raise(message: str) -> None:
    raise RuntimeError(message)


@pytest.fixture(autouse=True)
def _known() -> None:
    register_secrets([API_KEY, PASSWORD])


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("secret", [API_KEY, PASSWORD], ids=["key", "password"])
def test_a_known_secret_is_found_in_any_spelling(spell: Callable[[str], str], secret: str) -> None:
    assert redact_text(f"before {spell(secret)}, after") == f"before {REDACTED}, after"


@given(before=st.text(max_size=20), after=st.text(max_size=20), encoded=st.integers(0, 2 ** len(API_KEY) - 1))
def test_a_known_secret_is_found_with_any_of_its_characters_encoded(before: str, after: str, encoded: int) -> None:
    spelled = "".join(
        f"%{ord(character):02x}" if encoded >> place & 1 else character for place, character in enumerate(API_KEY)
    )
    assert API_KEY not in unquote(redact_text(before + spelled + after))


WAYS: dict[str, Callable[[str], Any]] = {
    "text": lambda secret: f"the key is {secret}.",
    "bytes": lambda secret: f"the key is {secret}.".encode(),
    "bytearray": lambda secret: bytearray(secret.encode()),
    "dict value": lambda secret: {"a": {"b": [secret]}},
    "dict key": lambda secret: {secret: 1},
    "tuple key": lambda secret: {(1, secret): 1},
    "set": lambda secret: {secret},
    "ordered dict": lambda secret: OrderedDict(a=(secret,)),
    "dataclass": lambda secret: Request(secret, f"https://h/?key={secret}"),
    "exception": lambda secret: ValueError("bad key", secret),
    "exception from bytes": lambda secret: ValueError(secret.encode()),
    "type": lambda secret: type(f"T{secret}", (), {}),
    "deep": lambda secret: json.loads("[" * 60 + json.dumps(secret) + "]" * 60),
}


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_no_value_of_an_event_shows_a_secret(
    configured: Callable[..., Any], way: Callable[[str], Any], form: str
) -> None:
    logs = configured(**ENVIRON, FINETUNE_LOG_FORMAT=form)
    log = structlog.get_logger("finetune_worker.attack")
    for secret in (API_KEY, PASSWORD):
        with structlog.contextvars.bound_contextvars(account=way(secret)):
            log.info("stage_ended", detail=way(secret), **{f"field {secret}": 1})
        log.info(secret)
        log.info("positional %s", way(secret))
        log.bind(inner=way(secret)).warning("bound", stack_info=True)
    _assert_hidden(logs.text)


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_no_record_of_the_standard_library_shows_a_secret(
    configured: Callable[..., Any], way: Callable[[str], Any], form: str
) -> None:
    logs = configured(**ENVIRON, FINETUNE_LOG_FORMAT=form)
    theirs = logging.getLogger("kombu.transport")
    for secret in (API_KEY, PASSWORD):
        theirs.warning("arguments %s and %r", way(secret), way(secret))
        theirs.warning(f"text {secret}")
        theirs.warning(way(secret))
        theirs.warning("by name %(key)s", {"key": way(secret)}, extra={"data": way(secret)})
        logging.getLogger(f"celery.{quote(secret)}").warning("named after it", stack_info=True)
        try:
            try:
                _raise(str(way(secret)))
            except RuntimeError as error:
                error.add_note(f"a note on {secret}")
                raise ConnectionError(f"no server at redis://:{secret}@h:1/0") from error
        except ConnectionError:
            theirs.exception("failed with %s", way(secret))
            theirs.error("told as text: %s", traceback.format_exc())
    _assert_hidden(logs.text)


def _assert_hidden(text: str) -> None:
    assert REDACTED in text
    for layer in (text, unquote(text), text.encode().decode("unicode_escape", "replace"), _decoded(text)):
        assert API_KEY not in layer
        assert PASSWORD not in layer


def _decoded(text: str) -> str:
    """All strings in JSON lines as they were before they were escaped."""
    decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: " ".join(f"{name} {value}" for name, value in pairs))
    return "\n".join(str(decoder.decode(line)) for line in text.splitlines() if line.startswith("{"))


nested = st.recursive(
    st.text(max_size=5) | st.none() | st.integers() | st.floats() | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(shape=nested, spell=st.sampled_from(list(SPELLINGS.values())), data=st.data())
def test_redact_finds_a_secret_anywhere_and_gives_plain_json(
    shape: Any, spell: Callable[[str], str], data: st.DataObject
) -> None:
    hidden = _hide(shape, spell(API_KEY), data.draw)
    redacted = redact(hidden)
    text = json.dumps(redacted, allow_nan=False)
    assert API_KEY not in unquote(unquote(json.dumps(redacted, ensure_ascii=False).replace("\\", "")))
    assert json.loads(text) == redacted
    assert redact(redacted) == redacted, "once is enough"


def _hide(shape: Any, secret: str, draw: Callable[..., Any]) -> Any:
    """Put the secret in one place of the shape."""
    if isinstance(shape, dict) and shape:
        name = draw(st.sampled_from(sorted(shape)))
        if draw(st.booleans()):
            return {**shape, name: _hide(shape[name], secret, draw)}
        return {**shape, name + secret: 1}
    if isinstance(shape, list) and shape:
        place = draw(st.integers(0, len(shape) - 1))
        return [*shape[:place], _hide(shape[place], secret, draw), *shape[place + 1 :]]
    if isinstance(shape, bytes):
        return shape + secret.encode() + shape
    return f"{shape}{secret}{shape}"


@pytest.mark.parametrize(
    "text",
    [
        SIGNED,
        quote(SIGNED, safe=""),
        f"https://proxy/fetch?url={quote(SIGNED, safe='')}&n=1",
        quote(quote(SIGNED, safe=""), safe=""),
        json.dumps({"presigned_url": SIGNED}),
        json.dumps({"presigned_url": SIGNED}).replace("&", "\\u0026"),
        SIGNED.replace("&", "&amp;"),
        SIGNED.replace("/", "\\/"),
        f"HTTPSConnectionPool(host='b', port=443): Max retries exceeded with url: {SIGNED} (Caused by None)",
        repr(SIGNED.encode()),
        SIGNED.lower().replace("akiahidden", "AKIAHIDDEN").replace("iqojhidden", "IQoJhidden"),
    ],
)
def test_signatures_go_and_the_rest_of_the_url_stays(text: str) -> None:
    redacted = redact_text(text)
    for secret in SIGNED_SECRETS:
        assert secret not in redacted
    for kept in ("job.zip", "20260101t000000z", "3600"):
        assert kept in redacted.lower()


HOOK = hook_path(SecretStr("a-secret-of-the-tests-and-no-other-0123456789"), "team-a")


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("GET /x?sig=s3cr3t&n=1", "GET /x?sig=[redacted]&n=1"),
        ("?token=s3cr3t", "?token=[redacted]"),
        (
            "?GoogleAccessId=me@x.com&Signature=a%2Bb%3D&Expires=9",
            "?GoogleAccessId=[redacted]&Signature=[redacted]&Expires=9",
        ),
        ("?X-Goog-Signature=beef&X-Goog-Credential=me", "?X-Goog-Signature=[redacted]&X-Goog-Credential=[redacted]"),
        ("redis://:s3cr3t@h:6379/0 is gone", "redis://:[redacted]@h:6379/0 is gone"),
        ("Connected to redis://:**@h:6379/0", "Connected to redis://h:6379/0"),  # as kombu shows any URL
        ("redis://user:s3/c@r3t@h:6379/0", "redis://user:[redacted]@h:6379/0"),
        ("amqp://guest:s3cr3t@h//", "amqp://guest:[redacted]@h//"),
        ("https://me:s3cr3t@h/p", "https://me:[redacted]@h/p"),
        ("redis%3A%2F%2F%3As3cr3t%40h", "redis%3A%2F%2F%3A[redacted]%40h"),
        ("unix://u:s3cr3t@/run/x?db=1", "unix://u:[redacted]@/run/x?db=1"),
        ("unix:///run/x?db=1&password=s3cr3t", "unix:///run/x?db=1&password=[redacted]"),
        ("x-api-key: s3cr3t\nAccept: */*", "x-api-key: [redacted]\nAccept: */*"),
        ("curl -H 'x-api-key: s3cr3t' -X GET", "curl -H 'x-api-key: [redacted]' -X GET"),
        ("{'X-Api-Key': 's3cr3t', 'n': 1}", "{'X-Api-Key': '[redacted]', 'n': 1}"),
        ('{"x-api-key":"s3\\"cr3t","n":1}', '{"x-api-key":"[redacted]","n":1}'),
        ('"{\\"x-api-key\\": \\"s3cr3t\\"}"', '"{\\"x-api-key\\": \\"[redacted]\\"}"'),
        ("[(b'x-api-key', b's3cr3t'), (b'n', b'1')]", "[(b'x-api-key', b'[redacted]'), (b'n', b'1')]"),
        (
            r"send: b'GET / HTTP/1.1\r\nx-api-key: s3cr3t\r\nn: 1'",
            r"send: b'GET / HTTP/1.1\r\nx-api-key: [redacted]\r\nn: 1'",
        ),
        ("Authorization: Basic czNjcjN0", "Authorization: [redacted]"),
        ("authorization: AWS4-HMAC-SHA256 Credential=s3cr3t, Signature=s3cr3t", "authorization: [redacted]"),
        ("got 'Bearer s3cr3t.s3cr3t'", "got 'Bearer [redacted]'"),
        ("Request(api_key='s3cr3t', n=1)", "Request(api_key='[redacted]', n=1)"),
        ("SEGMIND_API_KEY=s3cr3t celery", "SEGMIND_API_KEY=[redacted] celery"),
        (f"https://gw.example/x{HOOK} is registered", "https://gw.example/x/hooks/team-a/[redacted] is registered"),
        (f"POST {HOOK}", "POST /hooks/team-a/[redacted]"),
        (quote(HOOK, safe=""), "%2Fhooks%2Fteam-a%2F[redacted]"),
    ],
)
def test_foreign_secrets_go_where_they_stand(text: str, redacted: str) -> None:
    assert redact_text(text) == redacted
    assert redact_text(redacted) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "job 0190e0b8-7d2c-7000-8000-000000000000 went to training after 2.5 s",
        "https://storage.googleapis.com/bucket/model.safetensors?generation=17&alt=media",
        "file:///srv/finetune/a:b@c/model.safetensors",
        "http://127.0.0.1:8080/finetune/request/list",
        "redis://localhost:6379/0",
        "SEGMIND_API_KEY: missing, and a worker needs it",
        "the signature of the URL has expired; a new one is asked for",
        "trigger_word=1MAN tokens=75 design=2",
        "2026-01-01T00:00:00Z mail me@x.com",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact_text(text) == text


def test_secret_fields_go_by_their_name() -> None:
    fields = {
        "headers": {"X-Api-Key": "s3cr3t", "Accept": "*/*"},
        "raw_headers": [(b"x-api-key", b"s3cr3t"), (b"accept", b"*/*")],
        "broker_password": "s3cr3t",
        "Signature": b"s3cr3t",
        "token": 5,
        "has_token": True,
        "api_key": None,
        "idempotency_key": "kept",
        "credits": 3,
    }
    assert redact(fields) == {
        "headers": {"X-Api-Key": REDACTED, "Accept": "*/*"},
        "raw_headers": [["x-api-key", REDACTED], ["accept", "*/*"]],
        "broker_password": REDACTED,
        "Signature": REDACTED,
        "token": REDACTED,
        "has_token": True,
        "api_key": None,
        "idempotency_key": "kept",
        "credits": 3,
    }


PIECES = (
    *"=:%\"'@/?& \\,",
    *("://", "redis", "Authorization", "COOKIE", "x-api-key", "api_key", "token", "sig", "password"),
    *("/hooks/", "a/", HOOK),
    *("Bearer ", "bearer\t", "%3D", "%2F", "3A", "user", "a1B2c3D4e5"),
)


@given(text=st.lists(st.sampled_from(PIECES) | st.text(max_size=2), max_size=12).map("".join))
def test_no_pattern_is_needed_where_none_of_their_marks_is(text: str) -> None:
    everything = text
    for pattern, replacement in redaction._REPLACEMENTS:
        everything = pattern.sub(replacement, everything)
    assert redact_text(text) == everything


def test_a_name_that_was_seen_before_it_was_a_secret_is_hidden_from_then_on() -> None:
    assert redact({"some-later-word": 1}) == {"some-later-word": 1}
    register_secrets(["some-later-word"])
    assert redact({"some-later-word": 1}) == {REDACTED: 1}


def test_too_short_a_secret_is_not_searched_for() -> None:
    register_secrets(["ab", ""])
    assert redact_text("a table of absent abbots") == "a table of absent abbots"


@pytest.mark.parametrize(
    "hostile",
    [
        "a" * 200_000,
        "://" * 60_000,
        "://a:" * 40_000,
        "redis://:" * 20_000,
        "%25" * 60_000,
        "sig=" * 50_000,
        "password='" * 20_000,
        "x-api-key: " * 20_000,
        "\\" * 200_000,
        API_KEY[:-1] * 6_000,
        base64.b64encode(bytes(150_000)).decode(),
    ],
    ids=lambda text: text[:9],
)
def test_a_hostile_text_costs_no_more_than_its_length(hostile: str) -> None:
    started = time.process_time()
    redact_text(hostile)
    assert time.process_time() - started < 3
