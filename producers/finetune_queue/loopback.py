"""Which hosts are this machine. Plain http to them is allowed, and an API there is the sandbox, so it costs nothing."""

import ipaddress


def is_loopback(host: str | None) -> bool:
    """Tell whether a host is this machine: a loopback address, or a name under ``localhost`` (RFC 6761, 6.3)."""
    if host is None:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
