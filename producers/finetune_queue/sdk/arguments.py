"""What the arguments of a call must be. Python takes any value for any argument, and any text for true."""

from finetune_queue.errors import InvalidArgumentError


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False: ``"no"`` and ``"false"`` are texts, and count as true.

    Raises:
        InvalidArgumentError: it is neither.
    """
    if not isinstance(value, bool):
        _refuse(name, "True or False", value)


def check_text(name: str, value: object) -> None:
    """Refuse what is no text.

    Raises:
        InvalidArgumentError: it is none.
    """
    if not isinstance(value, str):
        _refuse(name, "a text", value)


def _refuse(name: str, wanted: str, value: object) -> None:
    message = f"{name}: should be {wanted}, not of the type {type(value).__name__}"
    raise InvalidArgumentError(message)
