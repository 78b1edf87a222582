"""Whom this process's connections trust, for the time of a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune_queue.public_fetch import guard
from finetune_worker.wire import session


@contextmanager
def trusting(authority: Path) -> Iterator[None]:
    """Let new sessions trust this certificate in place of the world's authorities."""
    contexts = (guard.tls_context, session.tls_context)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("requests.utils.DEFAULT_CA_BUNDLE_PATH", str(authority))
        for context in contexts:
            context.cache_clear()
        try:
            yield
        finally:
            for context in contexts:
                context.cache_clear()
