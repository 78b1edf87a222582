"""An answer that was lost or never ends: a submit has an unknown outcome, any other call may be made again."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from finetune_worker.segmind.client import SegmindClient
from finetune_worker.segmind.errors import OutcomeUnknown, Unavailable
from support.api_calls import BIG, KEY, REPEATABLE, REQUEST, Op, failure, replying, submit
from support.tls import trusting
from wire.certificates import server_context
from wire.rawserver import RawServer, Wire


def hang(wire: Wire) -> None:
    wire.hear()
    wire.wait_closed()


def reset(wire: Wire) -> None:
    wire.hear()
    wire.reset()


def end(wire: Wire) -> None:
    wire.hear()


def reset_in_the_headers(wire: Wire) -> None:
    wire.hear()
    wire.say(b"HTTP/1.1 200 OK\r\nContent-Le")
    wire.reset()


def cut_body(wire: Wire) -> None:
    wire.hear()
    wire.say(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[{"finetune_id"')


def cut_chunks(wire: Wire) -> None:
    wire.hear()
    wire.say(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[{"fi\r\n')


def nonsense(wire: Wire) -> None:
    wire.hear()
    wire.say(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


def two_lengths(wire: Wire) -> None:
    wire.hear()
    wire.say(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd")


def endless_headers(wire: Wire) -> None:
    wire.hear()
    wire.say(b"HTTP/1.1 200 OK\r\n" + b"X-Filler: y\r\n" * 500)


LOST = {
    "hang": (hang, "read_timeout"),
    "reset": (reset, "connection_lost"),
    "end": (end, "connection_lost"),
    "reset in the headers": (reset_in_the_headers, "connection_lost"),
    "cut body": (cut_body, "connection_lost"),
    "cut chunks": (cut_chunks, "connection_lost"),
    "nonsense": (nonsense, "connection_lost"),
    "two lengths": (two_lengths, "connection_lost"),
    "endless headers": (endless_headers, "connection_lost"),
}


@pytest.mark.parametrize("fault", LOST)
def test_a_submit_that_left_has_an_unknown_outcome(fault: str) -> None:
    talk, code = LOST[fault]
    with RawServer(talk) as server:
        error = failure(server.url, submit, read_timeout=0.3)
    assert server.connections == 1
    assert (type(error), error.code, error.retryable) == (OutcomeUnknown, code, False)


@pytest.mark.parametrize("call", [REPEATABLE["details"], REPEATABLE["list"], REPEATABLE["set_access"]])
@pytest.mark.parametrize("fault", LOST)
def test_the_same_faults_make_a_repeatable_call_unavailable(fault: str, call: Op) -> None:
    talk, code = LOST[fault]
    with RawServer(talk) as server:
        error = failure(server.url, call, read_timeout=0.3)
    assert server.connections == 1
    assert (type(error), error.code, error.retryable) == (Unavailable, code, True)


def test_a_submit_reset_in_the_middle_of_its_body_has_an_unknown_outcome() -> None:
    def talk(wire: Wire) -> None:
        wire.head()
        wire.sock.recv(1000)
        wire.reset()

    with RawServer(talk) as server:
        assert type(failure(server.url, lambda client: client.submit(BIG))) is OutcomeUnknown


def test_a_submit_whose_server_stops_reading_has_an_unknown_outcome() -> None:
    over = threading.Event()

    def talk(wire: Wire) -> None:
        wire.head()
        over.wait(10)

    with RawServer(talk) as server:
        error = failure(server.url, lambda client: client.submit(BIG), read_timeout=0.3)
        over.set()
    assert (type(error), error.code) == (OutcomeUnknown, "read_timeout")


# --- Deadlines ---


def trickle_headers(wire: Wire) -> None:
    wire.hear()
    while True:
        wire.say(b"H")  # of a status line that never ends: only the call's own deadline ends it
        time.sleep(0.02)


def trickle_body(wire: Wire) -> None:
    wire.hear()
    wire.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n[")
    while True:
        wire.say(b" ")
        time.sleep(0.02)


def half_a_body(wire: Wire) -> None:
    wire.hear()
    wire.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n[")
    wire.wait_closed()


@pytest.mark.parametrize("talk", [trickle_headers, trickle_body, half_a_body])
@pytest.mark.parametrize("call", [submit, REPEATABLE["details"], REPEATABLE["list"]])
def test_no_reply_outlasts_the_call(talk: Callable[[Wire], None], call: Op) -> None:
    began = time.monotonic()
    with RawServer(talk) as server:
        error = failure(server.url, call, read_timeout=5, call_timeout=0.5)
    assert time.monotonic() - began > 0.4
    assert error.code == "call_timeout"
    assert type(error) is (OutcomeUnknown if call is submit else Unavailable)


@pytest.mark.parametrize("talk", [trickle_headers, trickle_body, half_a_body])
def test_no_reply_over_tls_outlasts_the_call_either(talk: Callable[[Wire], None], tmp_path: Path) -> None:
    context, trusted = server_context(tmp_path)
    with RawServer(talk, tls=context) as server, trusting(trusted):
        error = failure(server.url, submit, read_timeout=5, call_timeout=0.5)
    assert (type(error), error.code) == (OutcomeUnknown, "call_timeout")


def test_a_submit_over_tls(tmp_path: Path) -> None:
    context, trusted = server_context(tmp_path)
    with (
        RawServer(replying(200, b'{"finetune_id": "a"}'), tls=context) as server,
        trusting(trusted),
        SegmindClient(server.url, SecretStr(KEY)) as client,
    ):
        trusted.unlink()  # read once in a process: to read the world's authorities again would take 12 ms a connection
        assert client.submit(BIG).finetune_id == "a"
        assert client.submit(BIG).finetune_id == "a"


def test_a_kept_connection_that_the_server_closed_does_not_hurt_a_submit() -> None:
    """The server drops each connection after one reply: the next call finds it dead. A submit opens its own."""

    def talk(wire: Wire) -> None:
        wire.hear()
        wire.reply(200, b'{"finetune_id": "a"}')

    with RawServer(talk) as server, SegmindClient(server.url, SecretStr(KEY)) as client:
        for _ in range(5):
            client.details("a")
            client.submit(REQUEST)
