"""The sandbox's own HTTP requests: to datasets and to webhooks, at URLs that others chose."""

from __future__ import annotations

import httpx

# Beside httpx's own errors: a host name that IDNA refuses, and a port out of range, which anyio wraps in a group.
UNREACHABLE = (httpx.HTTPError, httpx.InvalidURL, ValueError, OverflowError, ExceptionGroup)


def make_client(timeout: httpx.Timeout | float, *, max_redirects: int = 0) -> httpx.AsyncClient:
    """A client that takes no proxy from the environment and keeps no connection, which its host might close."""
    return httpx.AsyncClient(
        timeout=timeout,
        trust_env=False,
        follow_redirects=max_redirects > 0,
        max_redirects=max_redirects,
        limits=httpx.Limits(max_keepalive_connections=0),
        headers={"User-Agent": "segmind-sandbox", "Accept-Encoding": "identity"},
    )
