"""JSON from outside, in which a repeated member is an error: Python would silently take the last of the two."""

import json
from collections import Counter
from typing import Any

_SHOWN = 64


class RepeatedMemberError(ValueError):
    """An object has a member more than once. The message is the end of a sentence whose beginning says where."""

    def __init__(self, name: str) -> None:
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"
        super().__init__(f"has the member {json.dumps(shown)} more than once")


def read_json(text: str | bytes) -> Any:
    """Read a document.

    Raises:
        RepeatedMemberError: an object in it has a member more than once.
        ValueError, RecursionError: as ``json.loads``.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise RepeatedMemberError(counts.most_common(1)[0][0])
    return found
