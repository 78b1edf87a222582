"""No connection to a place that users may not reach, whatever leads there."""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler

import pytest
import requests
from requests_hardened.ip_filter import InvalidIPAddress  # type: ignore[import-untyped]

from finetune_queue.public_fetch.addresses import AddressPolicy
from finetune_queue.public_fetch.errors import FetchError
from finetune_queue.public_fetch.guard import MAX_REDIRECTS, GuardedAdapter, opened
from support.names import NOT_PUBLIC, Names
from support.web import Answer, Trap, Web

STRICT = AddressPolicy()
LOOPBACK = AddressPolicy(allow_loopback=True)
PUBLIC = "93.184.216.34"
PUBLIC_IN_IPV6 = "::ffff:8.8.8.8"
"""Refused as text; when a name has it, the filter takes the public IPv4 address out of it."""


def status(url: str, policy: AddressPolicy = STRICT, seconds: float = 30) -> int:
    with opened("GET", url, policy, seconds=seconds) as (response, _):
        return response.status_code


def refusal(url: str, policy: AddressPolicy = STRICT) -> FetchError:
    with pytest.raises(FetchError) as caught:
        status(url, policy)
    return caught.value


def trusting(*servers: Web) -> AddressPolicy:
    """A policy for a first server that may be reached, so that what it redirects to is judged."""
    return AddressPolicy(trusted_origins=frozenset(server.url() for server in servers))


@pytest.mark.parametrize("address", [each for each in NOT_PUBLIC if each != PUBLIC_IN_IPV6])
def test_a_name_that_leads_to_an_address_that_is_not_public(address: str, names: Names, connected: list[str]) -> None:
    names.answers["evil.test"] = [[address]]
    error = refusal("https://evil.test/a.zip")
    assert error.code == "address_refused"
    assert address not in str(error)
    assert connected == []


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_no_packet_reaches_the_trap(address: str, scheme: str, names: Names, trap: Trap) -> None:
    """The adapter alone, at the trap's own port: not even a wrong URL check would let a connection through."""
    names.answers["evil.test"] = [[address]]
    for policy, knocks in ((STRICT, 0), (LOOPBACK, 1)):
        with requests.Session() as session:
            session.trust_env = False
            session.mount(f"{scheme}://", GuardedAdapter(policy, scheme=scheme))
            with pytest.raises(requests.RequestException) as caught:
                session.get(f"{scheme}://evil.test:{trap.port}/", timeout=5)
        assert isinstance(caught.value, InvalidIPAddress) == (policy is STRICT)
        assert trap.knocks == knocks


@pytest.mark.parametrize("port", [80, 8443])
def test_a_public_address_is_reached_on_the_usual_port_only(port: int, names: Names, connected: list[str]) -> None:
    names.answers["good.test"] = [[PUBLIC]]
    for policy in (STRICT, LOOPBACK):
        assert refusal(f"https://good.test:{port}/", policy).code == "address_refused"
        assert refusal("http://good.test/", policy).code == "address_refused"
    assert connected == []
    assert refusal("https://good.test/").code == "unreachable"
    assert connected == [f"{PUBLIC}:443"]


def test_rebinding_changes_nothing_after_the_check(names: Names, connected: list[str]) -> None:
    names.answers["rebind.test"] = [[PUBLIC], ["127.0.0.1"]]
    assert refusal("https://rebind.test/").code == "unreachable"
    assert names.looked_up == ["rebind.test"]
    assert connected == [f"{PUBLIC}:443"]
    assert refusal("https://rebind.test/").code == "address_refused"
    assert connected == [f"{PUBLIC}:443"]


def test_of_several_addresses_only_the_checked_one_is_used(names: Names, connected: list[str]) -> None:
    names.answers["mixed.test"] = [[PUBLIC, "10.0.0.1", "127.0.0.1"]]
    assert refusal("https://mixed.test/").code == "unreachable"
    assert connected == [f"{PUBLIC}:443"]


def test_a_name_in_other_digits(names: Names, connected: list[str]) -> None:
    """Names are normalised before they are looked up, and full-width digits become an address then."""
    full_width = "127.0.0.1".translate({ord(digit): 0xFF10 + int(digit) for digit in "0127"})
    for host in (full_width, "①②⑦.⓪.⓪.①", "127。0。0。1"):
        assert refusal(f"https://{host}/").code in ("address_refused", "bad_url"), host
    assert connected == []


@pytest.mark.parametrize(
    "location", [f"https://{each}/" for each in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]")]
)
def test_a_redirect_to_an_inner_address(location: str, web: Web, names: Names) -> None:
    web.routes["/a.zip"] = Answer(status=302, headers={"Location": location})
    assert refusal(web.url("/a.zip"), trusting(web)).code == "address_refused"


def test_a_redirect_to_the_trap(web: Web, trap: Trap, names: Names) -> None:
    names.answers["evil.test"] = [["127.0.0.1"]]
    for location in (
        f"http://127.0.0.1:{trap.port}/",
        f"https://evil.test:{trap.port}/",
        f"//evil.test:{trap.port}/",
        f"https://user@evil.test:{trap.port}/",
        f"http://0x7f000001:{trap.port}/",
        "https://evil.test/",
        "file:///etc/passwd",
        "http://[::1",
    ):
        web.routes["/a.zip"] = Answer(status=307, headers={"Location": location})
        assert refusal(web.url("/a.zip"), trusting(web)).code in ("address_refused", "bad_url"), location
    assert trap.knocks == 0


@pytest.mark.parametrize("redirects", [MAX_REDIRECTS, 0])
def test_the_body_of_a_redirect_is_not_read(web: Web, redirects: int) -> None:
    ended = threading.Event()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "/there")
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(bytes(65_536))
        ended.set()

    web.routes |= {"/": endless, "/there": Answer(b"here")}
    with opened("GET", web.url(), LOOPBACK, seconds=5, redirects=redirects) as (response, _):
        assert response.status_code == (200 if redirects else 302)
    assert ended.wait(30)


def test_redirects_are_counted(web: Web) -> None:
    for hop in range(MAX_REDIRECTS + 1):
        web.routes[f"/{hop}"] = Answer(status=302, headers={"Location": f"/{hop + 1}"})
    web.routes[f"/{MAX_REDIRECTS + 1}"] = Answer(b"here")
    assert status(web.url("/1"), LOOPBACK) == 200
    assert refusal(web.url("/0"), LOOPBACK).code == "too_many_redirects"
    web.routes["/loop"] = Answer(status=301, headers={"Location": "/loop"})
    web.seen.clear()
    assert refusal(web.url("/loop"), LOOPBACK).code == "too_many_redirects"
    assert len(web.seen) == MAX_REDIRECTS + 1


def test_the_environment_cannot_lead_around_the_filter(web: Web, trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{trap.port}")
    web.routes["/a.zip"] = Answer(b"x")
    assert status(web.url("/a.zip"), LOOPBACK) == 200
    assert trap.knocks == 0
    assert "Authorization" not in web.headers[0]
    assert web.headers[0]["Accept-Encoding"] == "identity"


def test_a_trusted_origin_is_reached_and_only_that(web: Web, names: Names) -> None:
    names.answers["minio.internal"] = [["127.0.0.1"]]
    web.routes["/a.zip"] = Answer(b"x")
    policy = AddressPolicy(trusted_origins=frozenset({f"http://minio.internal:{web.port}"}))
    assert status(f"http://minio.internal:{web.port}/a.zip", policy) == 200
    assert refusal(web.url("/a.zip"), policy).code == "address_refused"
    web.routes["/away"] = Answer(status=302, headers={"Location": web.url("/a.zip")})
    assert refusal(f"http://minio.internal:{web.port}/away", policy).code == "address_refused"


def test_names_that_cannot_be_looked_up(names: Names) -> None:
    nobody = refusal("https://nobody.test/")
    assert (nobody.code, nobody.fix) == ("unreachable", "Check the host name.")
    for host in ("a" * 64 + ".test", "a..test", "xn--.test"):
        assert refusal(f"https://{host}/").code in ("unreachable", "bad_url")


def test_nobody_answers(trap: Trap) -> None:
    assert refusal(f"http://127.0.0.1:{trap.port}/", LOOPBACK).retryable


def _hang_up(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(65536)  # what is left unread makes the end a reset


def test_what_refuses_or_breaks_the_connection_is_no_wrong_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as pool:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.zip"
        pool.submit(_hang_up, server)
        assert "dropped the connection" in refusal(url, LOOPBACK).sentence
        pool.submit(_hang_up, server)
        assert "the TLS handshake failed" in refusal(url.replace("http", "https"), LOOPBACK).sentence
    refused = refusal(url, LOOPBACK)
    assert refused.sentence == f"{url} cannot be reached: the host refuses connections there."
    assert refused.fix == "Check that its server is running, and the port."


def test_a_server_that_never_ends_its_headers_is_left(web: Web) -> None:
    web.routes["/slow"] = drip_header
    started = time.monotonic()
    with pytest.raises(FetchError) as caught:
        status(web.url("/slow"), LOOPBACK, seconds=0.3)
    assert caught.value.code == "timed_out"
    assert caught.value.retryable
    assert time.monotonic() - started < 20


def drip_header(handler: BaseHTTPRequestHandler) -> None:
    """Never ends its headers, and is never silent for long."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(90):
        handler.wfile.write(b"X")
        handler.wfile.flush()
        time.sleep(0.02)


def test_a_deadline_that_passed_ends_new_connections_too(web: Web) -> None:
    web.routes["/"] = Answer(b"x")
    with pytest.raises(FetchError) as caught:
        status(web.url("/"), LOOPBACK, seconds=0.0)
    assert caught.value.code == "timed_out"
