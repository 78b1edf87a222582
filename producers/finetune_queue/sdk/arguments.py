"""What the arguments of a call must be. Python takes any value for any argument, and any text for true."""

import os
import re
from collections.abc import Mapping
from typing import NoReturn

from finetune_queue.contract import JobState, parse_sink
from finetune_queue.contract.request import ACCOUNT_NAME, ACCOUNT_RULE, check_label_keys
from finetune_queue.errors import InvalidArgumentError, UnknownStateError


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


def check_count(name: str, value: object, *, least: int = 0) -> None:
    """Refuse what is no whole number from ``least``.

    Raises:
        InvalidArgumentError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        _refuse(name, "a whole number", value)
    elif value < least:
        message = f"{name}: should be {least} or more, not {value}"
        raise InvalidArgumentError(message)


def check_seconds(name: str, value: object) -> None:
    """Refuse what is neither None nor a number of seconds from 0.

    Raises:
        InvalidArgumentError: it is neither.
    """
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        _refuse(name, "a number of seconds", value)
    elif not value >= 0:  # which NaN is not, either
        message = f"{name}: should be 0 or more seconds, not {value:g}"
        raise InvalidArgumentError(message)


def check_call(name: str, value: object) -> None:
    """Refuse what is neither None nor can be called.

    Raises:
        InvalidArgumentError: it is neither.
    """
    if value is not None and not callable(value):
        _refuse(name, "a function", value)


def check_path(name: str, value: object) -> None:
    """Refuse what names no file or folder.

    Raises:
        InvalidArgumentError: it is neither a text nor a path.
    """
    if not isinstance(value, str | os.PathLike):
        _refuse(name, "a path", value)


def check_filter(account: object, labels: object) -> None:
    """Refuse an account or labels that no job can have: they would only ever match nothing.

    Raises:
        InvalidArgumentError: one is of the wrong type, the account's name is impossible, or a label's key.
    """
    if account is not None:
        check_text("account", account)
        if not re.fullmatch(ACCOUNT_NAME, str(account)):
            message = f"account: {ACCOUNT_RULE}"
            raise InvalidArgumentError(message)
    if labels is None:
        return
    if not isinstance(labels, Mapping):
        _refuse("labels", 'a mapping, like {"team": "faces"}', labels)
    try:
        check_label_keys(labels)
    except ValueError as error:
        message = f"labels: {error}"
        raise InvalidArgumentError(message) from None
    for key, text in labels.items():
        check_text(f"labels.{key}", text)


def sink_named(sink: object) -> str:
    """Return the id of the sink that has this URL or id.

    Raises:
        InvalidArgumentError: it is no text, or a URL that no sink can have.
    """
    check_text("sink", sink)
    text = str(sink)
    try:
        return parse_sink(text).id if "://" in text else text
    except ValueError as error:
        message = f"sink: {error}"
        raise InvalidArgumentError(message) from None


def state_named(name: object) -> JobState:
    """Return the state of this name. A text that is none would only ever match nothing.

    Raises:
        UnknownStateError: there is none.
    """
    try:
        return JobState(name)  # type: ignore[arg-type]
    except ValueError:
        message = f"There is no state {name!r}. Known: {', '.join(JobState)}."
        raise UnknownStateError(message) from None


def _refuse(name: str, wanted: str, value: object) -> NoReturn:
    message = f"{name}: should be {wanted}, not of the type {type(value).__name__}"
    raise InvalidArgumentError(message)
