"""Texts from elsewhere, made fit for people."""

_WORDS = {
    "Value error, ": "",
    "Input should be a valid integer, unable to parse string as an integer": "should be a whole number",
    "Input should be a valid number, unable to parse string as a number": "should be a number",
    "Input should be": "should be",
}


def escaped(text: str) -> str:
    """Return a text that cannot steer a terminal: what is not printable becomes an escape sequence in letters."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def in_plain_words(message: str) -> str:
    """Return pydantic's message without what only a programmer understands."""
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message
