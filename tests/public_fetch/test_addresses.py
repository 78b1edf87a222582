"""Which URLs and addresses are public, by their text alone."""

import ipaddress
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_queue.public_fetch.addresses import AddressPolicy, check_url, is_public, shown_url
from finetune_queue.public_fetch.errors import FetchError
from support.names import NOT_PUBLIC

STRICT = AddressPolicy()


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_what_is_not_public(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert not is_public(address)
    host = f"[{text}]" if address.version == 6 else text
    with pytest.raises(FetchError) as caught:
        check_url(f"https://{host}/a.zip", STRICT)
    assert caught.value.code == "address_refused"
    assert not caught.value.retryable


@pytest.mark.parametrize("text", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::200e"])
def test_what_is_public(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert is_public(address)
    check_url(f"https://{f'[{text}]' if address.version == 6 else text}/a.zip", STRICT)


@given(
    st.ip_addresses(v=6, network="::/3")
    | st.ip_addresses(v=6, network="4000::/2")
    | st.ip_addresses(v=6, network="8000::/1")
)
def test_nothing_but_global_unicast_is_public_in_ipv6(address: ipaddress.IPv6Address) -> None:
    assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_inside_an_ipv6_one_is_never_public(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    for text in ("::ffff:0:0", "64:ff9b::", "::"):
        assert not is_public(ipaddress.IPv6Address(int(ipaddress.IPv6Address(text)) + number))
    assert not is_public(ipaddress.IPv6Address((0x2002 << 112) + (number << 80)))


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://example.com/a.zip", "address_refused"),
        ("https://example.com:8443/a.zip", "address_refused"),
        ("https://example.com:80/a.zip", "address_refused"),
        ("ftp://example.com/a.zip", "address_refused"),
        ("file:///etc/passwd", "bad_url"),
        ("https:///a.zip", "bad_url"),
        ("https://user@example.com/", "bad_url"),
        ("https://user:password@example.com/", "bad_url"),
        ("https://example.com@127.0.0.1/", "bad_url"),
        ("https://example.com\\@127.0.0.1/", "bad_url"),
        ("https://exa mple.com/", "bad_url"),
        ("https://example.com/\r\nHost: internal", "bad_url"),
        ("https://example.com:99999/", "bad_url"),
        ("https://example.com:x/", "bad_url"),
        ("https://[::1/", "bad_url"),
        ("https://" + "a" * 9000, "bad_url"),
        ("https://2130706433/", "address_refused"),
        ("https://0x7f000001/", "address_refused"),
        ("https://0x7f.1/", "address_refused"),
        ("https://0177.0.0.1/", "address_refused"),
        ("https://017700000001/", "address_refused"),
        ("https://127.1/", "address_refused"),
        ("https://127.0.0.1./", "address_refused"),
        ("https://134744072/", "address_refused"),
        ("https://[fe80::1%25eth0]/", "address_refused"),
        ("", "bad_url"),
        ("nonsense", "bad_url"),
    ],
)
def test_urls_that_are_not_used(url: str, code: str) -> None:
    with pytest.raises(FetchError) as caught:
        check_url(url, STRICT)
    assert caught.value.code == code
    assert "password" not in str(caught.value).replace("user name or password", "")


@given(st.text())
def test_any_text_is_used_or_refused(text: str) -> None:
    for url in (text, f"https://{text}", f"https://{text}/a.zip"):
        try:
            check_url(url, STRICT)
        except FetchError:
            continue
        assert url[:8].lower() == "https://"


def test_only_the_hosts_that_are_allowed() -> None:
    policy = AddressPolicy(only_hosts=frozenset({"Data.Example.com"}))
    check_url("https://data.example.com/a.zip", policy)
    check_url("https://DATA.example.com./a.zip", policy)
    for url in ("https://example.com/", "https://data.example.com.evil.com/", "https://x.data.example.com/"):
        with pytest.raises(FetchError, match="not one of the hosts"):
            check_url(url, policy)


def test_origins_that_are_trusted() -> None:
    policy = AddressPolicy(trusted_origins=frozenset({"http://Minio.internal:9000", "https://10.0.0.5/"}))
    check_url("http://minio.internal:9000/a.zip", policy)
    check_url("https://10.0.0.5/a.zip", policy)
    check_url("https://10.0.0.5:443/a.zip", policy)
    for url in ("http://minio.internal/", "https://minio.internal:9000/", "http://10.0.0.5/", "https://10.0.0.6/"):
        with pytest.raises(FetchError):
            check_url(url, policy)
    with pytest.raises(FetchError, match="user name"):
        check_url("http://user@minio.internal:9000/", policy)


@pytest.mark.parametrize("origin", ["minio", "minio:9000", "ftp://minio", "http://", "http://minio:x"])
def test_a_trusted_origin_is_checked_when_it_is_set(origin: str) -> None:
    with pytest.raises(ValueError):
        AddressPolicy(trusted_origins=frozenset({origin}))


def test_loopback_for_the_sandbox() -> None:
    policy = AddressPolicy(allow_loopback=True)
    for url in ("http://127.0.0.1:8001/a.zip", "http://localhost:8001/", "https://[::1]:9/", "https://example.com/"):
        check_url(url, policy)
    for url in ("http://10.0.0.1/", "https://169.254.169.254/", "ftp://127.0.0.1/", "http://2130706433/"):
        with pytest.raises(FetchError):
            check_url(url, policy)


def test_a_url_is_shown_without_its_secrets() -> None:
    assert shown_url("https://u:p@host.com:444/a/b.zip?X-Amz-Signature=1#f") == "https://host.com:444/a/b.zip"
    assert shown_url("https://[::1") == "the URL"
    assert shown_url("https://[::1]:444/a.zip") == "https://[::1]:444/a.zip"
    assert len(shown_url("https://host/" + "a" * 900)) == 200


def test_the_rules_can_be_imported_without_requests() -> None:
    code = "import sys, finetune_queue.public_fetch.addresses; print('requests' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "False"
