"""Job ids: UUIDs, so that any producer makes one without asking anybody."""

import uuid

import uuid_utils.compat

_IDEMPOTENCY_NAMESPACE = uuid.UUID("6f0d5f0e-2b0a-4c6e-9a37-5b1d9d1c7f5e")


def new_job_id() -> str:
    """Return a fresh UUIDv7 (RFC 9562), which sorts by creation time."""
    return str(uuid_utils.compat.uuid7())


def derived_job_id(account: str, idempotency_key: str) -> str:
    """Return the id that this key always gives in this account (UUIDv5), so that a repeated submit finds its job."""
    return str(uuid.uuid5(_IDEMPOTENCY_NAMESPACE, f"{account}\x00{idempotency_key}"))


def is_job_id(text: str) -> bool:
    """Tell whether ``text`` is a UUID in its canonical form."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
