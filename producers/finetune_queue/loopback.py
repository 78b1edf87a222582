"""Which hosts are this machine: there plain http is allowed, and what is called costs nothing, as it is the sandbox."""

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
