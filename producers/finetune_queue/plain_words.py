"""What is wrong with a value, for the person who wrote it."""

_WORDS = {
    "Value error, ": "",
    "Input should be a valid integer, unable to parse string as an integer": "should be a whole number",
    "Input should be a valid number, unable to parse string as a number": "should be a number",
    "Input should be": "should be",
}


def in_plain_words(message: str) -> str:
    """Return pydantic's message without what only a programmer understands."""
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message
