"""A fine-tune request from JSON, options, or both: an option replaces what the JSON says."""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from finetune_queue.cli.output import CliError, usage_error
from finetune_queue.contract import FineTuneRequest, RequestError, parse_request
from finetune_queue.contract.json_text import RepeatedMemberError, read_json
from finetune_queue.errors import InvalidRequestError

STDIN = "-"

_OPTIONS = {
    "name": "--name",
    "instance_prompt": "--prompt",
    "trigger_word": "--trigger-word",
    "dataset": "--dataset",
}
"""The fields that every request needs, and the options that give them."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True, slots=True)
class Options:
    """What the options say of a request. ``fields`` are those of single options, None for one that was not given."""

    fields: Mapping[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    deadline: str | None = None

    @classmethod
    def read(
        cls,
        fields: Mapping[str, Any],
        *,
        steps: int | None,
        parameters: Iterable[str],
        labels: Iterable[str],
        deadline: str | None,
    ) -> Self:
        """Read the options that have a form of their own.

        Raises:
            CliError: one cannot be read, or two contradict each other.
        """
        changed = parse_parameters(parameters)
        if steps is not None:
            if "steps" in changed:
                raise usage_error("Say either --steps or --param steps=N.")
            changed["steps"] = steps
        return cls(fields, changed, parse_labels(labels), deadline)

    def over(self, body: Mapping[str, Any], *, keyed: bool = False) -> dict[str, Any]:
        """Return the body of a request with its fields replaced, and labels and parameters added.

        ``keyed`` tells that it will get an idempotency key; it may also have one.

        Raises:
            CliError: something cannot be added to what the body has there.
        """
        body = {**body, **{name: value for name, value in self.fields.items() if value is not None}}
        if self.parameters:
            default = deepcopy(FineTuneRequest.model_fields["advance_parameters"].default)
            body["advance_parameters"] = {**_object(body, "advance_parameters", default), **self.parameters}
        if self.labels:
            body["labels"] = {**_object(body, "labels", {}), **self.labels}
        if self.deadline is not None:
            keyed = keyed or body.get("idempotency_key") is not None
            body["deadline"] = parse_deadline(self.deadline, keyed=keyed)
        return body


def build_request(file: str | None, options: Options) -> FineTuneRequest:
    """Make the request of a file and options.

    Raises:
        CliError: the file or an option cannot be read.
        InvalidRequestError: what they say is not a request that can be accepted.
    """
    try:
        return parse_request(options.over({} if file is None else read_request(file)))
    except RequestError as error:
        raise InvalidRequestError([_with_option(problem) for problem in error.problems]) from None


def read_request(file: str) -> dict[str, Any]:
    """Read the JSON object of a file, or of standard input for ``-``.

    Raises:
        CliError: it cannot be read, or holds something else.
    """
    name = file_name(file)
    try:
        body = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
    except OSError as error:
        raise unreadable(file, error) from None
    return parse_object(body, name)


def parse_object(document: bytes, name: str) -> dict[str, Any]:
    """Read a JSON object, which is UTF-8 whatever the locale is; ``name`` is where it comes from.

    Raises:
        CliError: it is something else.
    """
    try:
        text = document.decode("utf-8-sig").rstrip()
    except UnicodeDecodeError:
        raise usage_error(f"{name} is not UTF-8 text.") from None
    try:
        body = read_json(text)
    except RepeatedMemberError as error:
        raise usage_error(f"{name} {error}.") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and "\n" in text:
            raise usage_error(
                f"{name} holds more than one JSON document; --file takes one request, --jsonl one per line."
            ) from None
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise usage_error(f"{name} is not JSON: {error.msg} ({place}).") from None
    except ValueError as error:  # a number of thousands of digits
        raise usage_error(f"{name} cannot be read: {error}.") from None
    except RecursionError:
        raise usage_error(f"{name} is nested too deeply.") from None
    if not isinstance(body, dict):
        many = ", not a list: --jsonl takes many, one per line" if isinstance(body, list) else ""
        raise usage_error(f"{name} should hold one JSON object with the request's fields{many}.")
    return body


def file_name(file: str) -> str:
    """Return what to call the file in a sentence."""
    return "standard input" if file == STDIN else file


def unreadable(file: str, error: OSError) -> CliError:
    """Make the error for a file that cannot be read."""
    return usage_error(f"{file_name(file)} cannot be read: {error.strerror or error}.")


def parse_parameters(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``KEY=JSON`` pairs for ``advance_parameters``.

    A word without quotes is refused and not taken for a string: ``face_crop=False`` would be paid for and ignored.
    """
    found: dict[str, Any] = {}
    for key, value in _pairs("--param", texts):
        try:
            found[key] = read_json(value)
        except RepeatedMemberError as error:
            raise usage_error(f"--param {key}: the value {error}.") from None
        except json.JSONDecodeError:
            raise usage_error(
                f"--param {key}={value}: the value is not JSON. Write true, 16, or a text in double quotes: "
                f"--param '{key}=\"{value}\"'"
            ) from None
        except (ValueError, RecursionError):
            raise usage_error(
                f"--param {key}: the number has too many digits, or the value is nested too deeply."
            ) from None
    return found


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """Read ``KEY=VALUE`` pairs.

    Raises:
        CliError: one is none, or a key is given twice.
    """
    return dict(_pairs("--label", texts))


def parse_deadline(text: str, *, keyed: bool) -> str:
    """Return a deadline as ISO 8601; ``90m``, ``2h`` or ``1d`` count from now.

    Raises:
        CliError: it is neither, or it counts from now in a request that has an idempotency key (``keyed``): the same
            command would then make another request each time, and the second would be refused.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        return text
    if keyed:
        raise usage_error(
            f"--deadline {text} is a different time on every run, so it cannot be used with --idempotency-key or with "
            "many requests. Give a point in time, like 2026-01-31T18:00:00Z."
        )
    try:
        moment = datetime.now(UTC) + timedelta(**{_UNITS[found[2]]: float(found[1])})
    except OverflowError:
        raise usage_error(f"--deadline {text} is too far away.") from None
    return moment.isoformat(timespec="seconds")


def _pairs(option: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise usage_error(f"{option} {text}: should be KEY=VALUE.")
        if key in found:
            raise usage_error(f"{option} {text}: {key} is given more than once.")
        found[key] = value
    return list(found.items())


def _object(body: dict[str, Any], field: str, default: dict[str, Any]) -> dict[str, Any]:
    value = body.get(field, default)
    if not isinstance(value, dict):
        raise usage_error(f"{field} in the file should be a JSON object.")
    return value


def _with_option(problem: str) -> str:
    """Name the option beside a missing field, and what a deadline may be here alone."""
    field, _, rest = problem.partition(": ")
    if field == "deadline":
        return f"{problem}, or from now: 90m, 2h, 1d"
    option = _OPTIONS.get(field)
    return f"{field} ({option}): {rest}" if option and rest == "is required" else problem
