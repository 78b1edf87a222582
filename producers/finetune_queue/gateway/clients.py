"""Who may use the gateway, and how often."""

import hmac
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256

from finetune_queue.gateway.problems import ProblemError, later
from finetune_queue.setting_types import RateLimit

LOCAL = "local"
"""The one client of a gateway without tokens, which listens on loopback addresses only."""

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="finetune-queue"'}


def new_token() -> str:
    """Return a fresh token of 256 random bits: too many to guess, so a plain SHA-256 is safe to store."""
    return f"ftq_{secrets.token_urlsafe(32)}"


def token_hash(token: str) -> str:
    """Return the hash of a token, as FINETUNE_GATEWAY_TOKENS holds it."""
    return sha256(token.encode()).hexdigest()


@dataclass(slots=True)
class _Bucket:
    """Requests that a client may still send now; one comes back every ``seconds / calls``."""

    level: float
    at: float


class Clients:
    """The clients of one process and their rate limits. Each replica of the gateway counts for itself."""

    def __init__(self, tokens: Mapping[str, str], limit: RateLimit, readers: Collection[str] = ()) -> None:
        """``tokens`` maps each client's name to the SHA-256 of its token; without any, everybody is :data:`LOCAL`.
        ``readers`` are the names of the clients that may only read."""
        self._tokens = dict(tokens)
        self._readers = frozenset(readers)
        self._limit = limit
        self._buckets = {name: _Bucket(limit.calls, time.monotonic()) for name in [*tokens, LOCAL]}

    @property
    def local_only(self) -> bool:
        """Whether no token is asked for."""
        return not self._tokens

    def identify(self, token: str | None, *, changing: bool = False) -> str:
        """Return the client that has this token; ``changing`` tells that its request may change something.

        Raises:
            ProblemError: 401; 403 if it may only read.
        """
        if self.local_only:
            return LOCAL
        if token is None:
            raise ProblemError("unauthorized", "Send 'Authorization: Bearer TOKEN'.", headers=_CHALLENGE)
        given = token_hash(token)
        found = [name for name, kept in self._tokens.items() if hmac.compare_digest(kept, given)]
        if not found:
            raise ProblemError("unauthorized", "The token is unknown.", headers=_CHALLENGE)
        if changing and found[0] in self._readers:
            raise ProblemError("read-only", f"FINETUNE_GATEWAY_READERS lets {found[0]} read, and change nothing.")
        return found[0]

    def admit(self, client: str) -> None:
        """Count a request of the client.

        Raises:
            ProblemError: 429; it has sent too many.
        """
        bucket, now = self._buckets[client], time.monotonic()
        rate = self._limit.calls / self._limit.seconds
        bucket.level = min(float(self._limit.calls), bucket.level + (now - bucket.at) * rate)
        bucket.at = now
        if bucket.level < 1:
            raise later("rate-limited", f"The limit is {self._limit} (requests/seconds).", (1 - bucket.level) / rate)
        bucket.level -= 1
