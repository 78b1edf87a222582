"""Texts from users, servers and libraries, and numbers of bytes, made fit to be shown to people."""

import re

_UNITS = (("GB", 10**9, 2), ("MB", 10**6, 1), ("kB", 10**3, 1))

_WORDS = {
    "Value error, ": "",
    "Input should be a valid integer, unable to parse string as an integer": "should be a whole number",
    "Input should be a valid integer, got a number with a fractional part": "should be a whole number",
    "Input should be a valid integer": "should be a whole number",
    "Input should be a valid number, unable to parse string as a number": "should be a number",
    "Input should be a valid string": "should be a string",
    "Input should be a valid boolean": "should be true or false",
    "Input should be a valid tuple": "should be a list",
    "Input should be a valid list": "should be a list",
    "Input should be a valid dictionary": "should be an object",
    "Input should be": "should be",
    "String should have at least 1 character": "should not be empty",
    "String should have": "should have",
}
"""pydantic's words, which are for Python programmers -> ours. Of two that begin alike, the longer has to come first."""


JOINERS = "\u200c\u200d"
"""Characters that are not printable alone, but are part of words in Persian and Hindi and join several emoji to one."""


def escaped(text: str) -> str:
    """Return a text that cannot steer a terminal: what is not printable becomes an escape sequence in letters."""
    return "".join(
        character
        if character.isprintable() or character in JOINERS
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def escaped_lines(text: str) -> str:
    """Return a text of several lines that cannot steer a terminal."""
    return "\n".join(map(escaped, text.split("\n")))


def encodable(text: str) -> str:
    """Return a text that can be sent and stored: JSON may hold a lone surrogate, which has no form in UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def byte_size(count: int) -> str:
    """Return a number of bytes in the decimal units that storage is sold and limited in, the API's limit, too."""
    for unit, bytes_of_one, places in _UNITS:
        if count >= bytes_of_one:
            whole, rest = divmod(count, bytes_of_one)
            return f"{count / bytes_of_one:.{places}f} {unit}" if rest else f"{whole} {unit}"
    return f"{count} byte{'' if count == 1 else 's'}"


_TOO_MANY = re.compile(r"^(?:Dictionary|List|Tuple) should have at most (\d+) items? after validation, not .*$")


def in_plain_words(message: str) -> str:
    """Return pydantic's message without what only a programmer understands."""
    message = _TOO_MANY.sub(r"should have at most \1 entries", message)
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message
