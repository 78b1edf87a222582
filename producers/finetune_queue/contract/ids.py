"""Job ids: UUIDs, so that any producer makes one without asking anybody."""

import uuid

import uuid_utils.compat

_IDEMPOTENCY_NAMESPACE = uuid.UUID("6f0d5f0e-2b0a-4c6e-9a37-5b1d9d1c7f5e")
_MESSAGE_NAMESPACE = uuid.UUID("0b6f4a53-8f0e-4e0c-8d1b-3a3c5f6f2d47")


def new_job_id() -> str:
    """Return a fresh UUIDv7 (RFC 9562), which sorts by creation time."""
    return str(uuid_utils.compat.uuid7())


def derived_job_id(account: str, idempotency_key: str) -> str:
    """Return the id that this key always gives in this account (UUIDv5), so that a repeated submit finds its job."""
    return str(uuid.uuid5(_IDEMPOTENCY_NAMESPACE, f"{account}\x00{idempotency_key}"))


def message_job_id(account: str, message_id: str) -> str:
    """Return the id of the job that a message becomes, the same each time that it is delivered: the message's own id if
    that is a UUID, else a UUIDv5 made from it. A message without an id gets a fresh one."""
    if is_job_id(message_id):
        return message_id
    return str(uuid.uuid5(_MESSAGE_NAMESPACE, f"{account}\x00{message_id}")) if message_id else new_job_id()


def is_job_id(text: str) -> bool:
    """Tell whether ``text`` is a UUID in its canonical form."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def whole_job_id(text: str) -> str | None:
    """Return the job id in a text that a person gave, perhaps with blanks or in capitals; None if it is not an id."""
    meant = text.strip().lower()
    return meant if is_job_id(meant) else None
