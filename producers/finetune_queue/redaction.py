"""Take secrets out of what is about to be written down: log lines, error sentences, events.

Two nets. The first knows this process's own secrets and finds them in any spelling (plain, percent-encoded, escaped).
The second knows where foreign secrets stand: signatures in query strings, key headers, passwords in URLs. Each pattern
is bounded, so that a hostile text costs time in proportion to its length only.
"""

import math
import re
import threading
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

REDACTED = "[redacted]"

SHORTEST_SECRET = 6
"""A known secret with fewer characters is left to the second net: so short a text would be found everywhere."""

_DEEPEST = 20
"""How deep `redact` follows mappings and sequences; what lies deeper is shown as text."""

# Names whose value is a secret, as field, header or query parameter; "-" and "_" are the same.
_NAMES = (
    "x-api-key",
    "api-key",
    "apikey",
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "password",
    "passwd",
    "secret",
    "secret-key",
    "client-secret",
    "access-token",
    "security-token",
    "token",
    "signature",
    "credential",
)
_SECRET_FIELD = re.compile(rf"(?:.*[-_])?(?:{'|'.join(_NAMES).replace('-', '[-_]')})", re.IGNORECASE | re.DOTALL)

_EQUALS = r"(?:=|%(?:25){0,4}3D)"
_PARAMETER = re.compile(
    # The names of signatures are whole words, also after a percent-encoded or JSON-escaped separator.
    r"((?:(?:(?<![A-Za-z0-9_-])|(?<=%26)|(?<=%3F)|(?<=2526)|(?<=253F)|(?<=u0026))"
    r"(?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|Signature|GoogleAccessId|AWSAccessKeyId|sig|token)"
    r"|api[-_]?key|access[-_]?token|password|passwd|secret(?:[-_]key)?)"
    rf"{_EQUALS})"
    r"(?:\\/|(?!%(?:25){0,4}26)[^&\s\"'<>\\#])+",
    re.IGNORECASE,
)

_QUOTE = r"(?:\\{0,4}[\"'])"
_QUOTED_VALUE = re.compile(
    # 'name': 'value', "name": "value", name='value', (b'name', b'value'), also inside a JSON string.
    r"((?:api[-_]?key|authorization|cookie|password|passwd|secret(?:[-_]key)?|token|signature|credential)"
    rf"{_QUOTE}?\s{{0,5}}(?::|,|=>|=)\s{{0,5}}b?({_QUOTE}))(?:(?!\2)(?:\\.|.))+",
    re.IGNORECASE | re.DOTALL,
)
_KEY_HEADER = re.compile(
    r"((?:x[-_]api[-_]key|x[-_]amz[-_]security[-_]token)\s{0,5}[:=]\s{0,5}+)(?!\[redacted)[^\s\"'\\,;&]+", re.IGNORECASE
)
_WHOLE_LINE_HEADER = re.compile(
    r"((?:authorization|cookie)\s{0,5}[:=]\s{0,5}+)(?!\[redacted)[^\r\n\"'\\]+", re.IGNORECASE
)
_BEARER = re.compile(r"(\bbearer\s{1,5})[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
# What makes the path of a webhook unguessable (gateway.hook_paths): 256 bits in base64.
_HOOK_PATH = re.compile(r"((?:/|%2F)hooks(?:/|%2F)[A-Za-z0-9_.-]{1,63}(?:/|%2F))[A-Za-z0-9_-]{43}", re.IGNORECASE)

_URL_PASSWORD = re.compile(
    r"((?:://|%3A%2F%2F)(?:(?!%3A|%2F|%40)[^\s/\"'<>@:?#]){0,256}(?::|%3A))(?:(?!%40)[^\s/\"'<>@]){1,1024}(?=@|%40)",
    re.IGNORECASE,
)
# A password that was not percent-encoded as it should be, in the schemes where it does happen.
_RAW_URL_PASSWORD = re.compile(
    r"((?:rediss?|amqps?|sentinel|redis\+socket|unix)://[^\s/\"'<>@:?#]{0,256}:)[^\s\"'<>]{1,1024}(?=@)", re.IGNORECASE
)

# kombu shows a URL with `:**@` also where it has no password, and a reader would look for one in vain.
_KOMBU_MASK = re.compile(r"(://)[^\s/\"'<>@:?#]{0,256}:\*\*@(?![^\s\"'<>]{0,1024}@)")

_REPLACEMENTS = (
    (_KOMBU_MASK, r"\g<1>"),
    (_RAW_URL_PASSWORD, rf"\g<1>{REDACTED}"),
    (_URL_PASSWORD, rf"\g<1>{REDACTED}"),
    (_PARAMETER, rf"\g<1>{REDACTED}"),
    (_QUOTED_VALUE, rf"\g<1>{REDACTED}"),
    (_KEY_HEADER, rf"\g<1>{REDACTED}"),
    (_WHOLE_LINE_HEADER, rf"\g<1>{REDACTED}"),
    (_BEARER, rf"\g<1>{REDACTED}"),
    (_HOOK_PATH, rf"\g<1>{REDACTED}"),
)

# A text without one of these marks matches none of the patterns above. Most texts have none, so that the log's every
# line is looked through once and not nine times.
_MARK = re.compile(r"[=%\"']|://|/hooks/|(?:api[-_]key|token|authorization|cookie)\s{0,5}:|bearer\s", re.IGNORECASE)


class _Known:
    """This process's own secrets. They are only ever added: a secret stays one after settings are read anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self.generation = 0
        """Grows with each addition."""

    def add(self, values: Iterable[str]) -> None:
        with self._lock:
            self._values.update(value for value in values if len(value) >= SHORTEST_SECRET)
            longest_first = sorted(self._values, key=len, reverse=True)
            if longest_first:
                self._pattern = re.compile("|".join(map(_any_spelling, longest_first)))
                self.generation += 1

    def remove_from(self, text: str) -> str:
        return text if self._pattern is None else self._pattern.sub(REDACTED, text)


_known = _Known()


def register_secrets(values: Iterable[str]) -> None:
    """Remember values that must never be written, in any spelling, for the rest of this process's life."""
    _known.add(values)


def redact_text(text: str) -> str:
    """Return `text` without known secrets, signatures, key headers and passwords in URLs."""
    text = _known.remove_from(text)
    if _MARK.search(text) is None:
        return text
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text


def redact(value: Any) -> Any:
    """Return a copy of `value` without secrets, made of what JSON can hold.

    Mappings and sequences are followed; any other object becomes the redacted text of its `repr`.
    """
    return _redact(value, depth=0)


def _redact(value: Any, *, depth: int) -> Any:
    if isinstance(value, str):
        return redact_text(str.__str__(value))
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return redact_text(bytes(value).decode("utf-8", "backslashreplace"))
    if depth < _DEEPEST:
        if isinstance(value, Mapping):
            return {_key(key): _redact_pair(key, item, depth=depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str | bytes):
            # A pair may be a header.
            return [_redact(value[0], depth=depth + 1), _redact_pair(value[0], value[1], depth=depth + 1)]
        if isinstance(value, list | tuple | set | frozenset):
            return [_redact(item, depth=depth + 1) for item in value]
    return redact_text(_repr(value))


def _redact_pair(name: object, value: Any, *, depth: int) -> Any:
    text = name.decode("latin-1") if isinstance(name, bytes) else name
    if isinstance(text, str) and value is not None and not isinstance(value, bool) and _names_a_secret(text):
        return REDACTED
    return _redact(value, depth=depth)


@lru_cache(maxsize=1024)
def _names_a_secret(name: str) -> bool:
    return _SECRET_FIELD.fullmatch(name) is not None


def _key(key: object) -> str:
    return _name(key, _known.generation) if type(key) is str else str(_redact(key, depth=_DEEPEST))


@lru_cache(maxsize=1024)
def _name(name: str, generation: int) -> str:  # noqa: ARG001 - part of the cache's key: new secrets, new entries
    return redact_text(name)


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 - a foreign object's fault must not cost the log line
        return f"<{type(value).__name__} whose repr raised {type(error).__name__}>"


def _any_spelling(secret: str) -> str:
    """A pattern for `secret` with each of its characters plain, percent-encoded (also twice) or escaped."""
    return "".join(map(_character, secret))


def _character(character: str) -> str:
    point = ord(character)
    percent = "".join(f"%(?:25){{0,4}}(?i:{code[1:]})" for code in _percent_codes(character))
    spellings = [re.escape(character), percent]
    if character in "\"'\\/":
        spellings.append(r"\\{1,4}" + re.escape(character))
    if character == " ":
        spellings.append(r"\+")
    if not (character.isascii() and character.isalnum()):
        if point <= 0xFF:
            spellings.append(rf"\\{{1,4}}x(?i:{point:02x})")
        if point <= 0xFFFF:
            spellings.append(rf"\\{{1,4}}u(?i:{point:04x})")
        else:
            high, low = divmod(point - 0x10000, 0x400)
            spellings.append(rf"\\{{1,4}}u(?i:{0xD800 + high:04x})\\{{1,4}}u(?i:{0xDC00 + low:04x})")
    return f"(?:{'|'.join(spellings)})"


def _percent_codes(character: str) -> list[str]:
    encoded = quote(character, safe="", errors="surrogatepass")
    if not encoded.startswith("%"):
        encoded = f"%{ord(character):02X}"
    return [encoded[start : start + 3] for start in range(0, len(encoded), 3)]
