"""Which addresses a URL given by a user may lead to.

Only public ones: loopback, private, link-local, shared (CGNAT), multicast, reserved, metadata and translated addresses
are refused (IANA special-purpose registries; OWASP SSRF prevention). The rules are applied to the URL's text here, and
in `guard` to the address that is really connected to, which is what stops redirects and DNS rebinding.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from finetune_queue.public_fetch.errors import FetchError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_MAX_URL = 8_192
_DEFAULT_PORTS = {"https": 443, "http": 80}
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""The only part of IPv6 that is given out for the public network (RFC 4291, section 2.4)."""
_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's platform address: public by number, internal by use
        "192.0.0.0/24",  # IETF protocol assignments; Oracle's metadata is in it
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # IETF protocol assignments, with Teredo
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
_ODD_CHARACTERS = re.compile(r"[\x00-\x20\x7f\\]")
_NUMBER = re.compile(r"^(?:0[xX][0-9a-fA-F]*|[0-9]+)$")
_FIX = "Give an https:// address that anybody on the internet can open."


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """What the operator lets users reach.

    `only_hosts`: when not empty, just these host names. `trusted_origins`, such as `http://minio.internal:9000`, are
    reached whatever their scheme, port and address are. `allow_loopback`: this machine too, with http and any port,
    for the sandbox.
    """

    only_hosts: frozenset[str] = frozenset()
    trusted_origins: frozenset[str] = frozenset()
    allow_loopback: bool = False

    def __post_init__(self) -> None:
        """Bring hosts and origins into one spelling. Raises ValueError for what is no origin."""
        object.__setattr__(self, "only_hosts", frozenset(host.lower().rstrip(".") for host in self.only_hosts))
        origins = frozenset(origin_of(urlsplit(origin)) for origin in self.trusted_origins)
        if any(not host or not port for _, host, port in origins):
            raise ValueError("a trusted origin is a URL of scheme, host and perhaps port: http://host:9000")
        object.__setattr__(self, "trusted_origins", frozenset(f"{s}://{h}:{p}" for s, h, p in origins))

    def trusts(self, url: str) -> bool:
        """Tell whether the URL is on one of the trusted origins."""
        scheme, host, port = origin_of(urlsplit(url))
        return f"{scheme}://{host}:{port}" in self.trusted_origins


def origin_of(parts: SplitResult) -> tuple[str, str, int]:
    """Scheme, host and port in lower case, the port filled in; 0 for a scheme that has none."""
    scheme = parts.scheme.lower()
    return scheme, (parts.hostname or "").rstrip("."), parts.port or _DEFAULT_PORTS.get(scheme, 0)


def is_public(address: IPAddress) -> bool:
    """Whether an address belongs to the public internet. Addresses that carry another one inside are never public."""
    if any(address in network for network in _REFUSED):
        return False
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def shown_url(url: str) -> str:
    """A URL for people and logs: without user, query and fragment."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "the URL"
    host = f"[{host}]" if ":" in host else host
    shown = f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"
    return shown if len(shown) <= 200 else f"{shown[:199]}…"


def check_url(url: str, policy: AddressPolicy) -> None:
    """Judges a URL by its text alone, before anything is looked up.

    Raises:
        FetchError: `bad_url` or `address_refused`.
    """
    if len(url) > _MAX_URL or _ODD_CHARACTERS.search(url):
        raise FetchError("bad_url", "The URL is too long, or has spaces, backslashes or control characters.", _FIX)
    try:
        parts = urlsplit(url)
        scheme, host, port = origin_of(parts)
    except ValueError as error:
        raise FetchError("bad_url", f"The URL cannot be understood ({error}).", _FIX) from error
    if not host:
        raise FetchError("bad_url", "The URL has no host name.", _FIX)
    if "@" in parts.netloc:
        raise FetchError(
            "bad_url", "The URL has a user name or password in it.", "Leave them out, or use a signed link."
        )
    if policy.only_hosts and host not in policy.only_hosts:
        raise FetchError(
            "address_refused", f"{host} is not one of the hosts that are allowed here.", "Use one of those."
        )
    if policy.trusts(url):
        return
    if not policy.allow_loopback and (scheme, port) != ("https", 443):
        raise FetchError("address_refused", "Only https:// on the usual port 443 is used.", _FIX)
    if scheme not in _DEFAULT_PORTS:
        raise FetchError("bad_url", f"{scheme}:// is not used here.", _FIX)
    _check_host(host, policy)


def _check_host(host: str, policy: AddressPolicy) -> None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        # The last part of a host decides whether it is read as a number: 127.1, 0x7f.1, 017700000001, 2130706433.
        if ":" in host or "%" in host or _NUMBER.match(host.rpartition(".")[2]):
            raise FetchError("address_refused", f"{host} is an address in an unusual notation.", _FIX) from error
        return
    if not is_public(address) and not (policy.allow_loopback and address.is_loopback):
        raise FetchError("address_refused", f"{host} is not an address on the public internet.", _FIX)
