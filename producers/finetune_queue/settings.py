"""Settings: read from outside, with all problems reported at once, and described for the documentation.

`load_settings` is the one place that reads the outside world. A value comes from, first found wins: the environment,
a `.env` file in the current folder, a folder of secret files (one file per setting, as Docker and Kubernetes mount
them).
"""

import difflib
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from finetune_queue.contract.sink import SinkKind, parse_sinks
from finetune_queue.plain_words import in_plain_words
from finetune_queue.setting_model import MISSING_KEY, Settings, SettingsError
from finetune_queue.setting_sources import read_mapping, read_sources
from finetune_queue.setting_types import AccountSettings, RateLimit, Shown

__all__ = [
    "AccountSettings",
    "RateLimit",
    "SettingRow",
    "Settings",
    "SettingsError",
    "describe",
    "load_settings",
    "missing_for_worker",
]


@dataclass(frozen=True)
class SettingRow:
    """One setting as the documentation shows it."""

    env: str
    type: str
    default: str
    secret: bool
    meaning: str
    example: str


def describe() -> Iterator[SettingRow]:
    """Yield every setting, in the order of the model."""
    for name, field in Settings.model_fields.items():
        yield SettingRow(
            env=name.upper(),
            type=_label(field),
            default=_default_text(field.default),
            secret=not field.repr,
            meaning=field.description or "",
            example=_example(field),
        )


def load_settings(environ: Mapping[str, str] | None = None, *, worker: bool = False) -> Settings:
    """Read and check all settings.

    Args:
        environ: Read these variables alone instead of the environment, `.env` and the secrets folder.
        worker: Also report what only workers need: an API key, and secrets to sign deliveries to web sinks with.

    Raises:
        SettingsError: Names every value that is wrong, missing or unknown, all at once.
    """
    given, problems = read_sources(Settings) if environ is None else read_mapping(Settings, environ)
    known = {name: value for name, (value, _source) in given.items() if name in Settings.model_fields}
    problems += [
        _unknown(name, source) for name, (_value, source) in given.items() if name not in Settings.model_fields
    ]
    wrong: set[str] = set()
    try:
        settings = Settings(**known)
    except ValidationError as error:
        details = error.errors(include_input=False, include_url=False, include_context=False)
        wrong = {str(detail["loc"][0]) for detail in details}
        problems += [_wrong(detail["loc"], detail["msg"], given[str(detail["loc"][0])][1]) for detail in details]
        settings = Settings(**{name: value for name, value in known.items() if name not in wrong})
    problems += _contradictions(settings, known.keys(), wrong)
    if worker:
        problems += missing_for_worker(settings, wrong)
    if problems:
        raise SettingsError(problems)
    return settings


# What replaces pydantic's words, which would not help a person who sets a variable.
_WORDS = {
    "Input should be a valid dictionary or instance of AccountSettings": "should be an object with an api_key",
    "Field required": "is missing",
    "Extra inputs are not permitted": "is not a field of an account",
}

_INSIDE = {"segmind_accounts": "account", "finetune_gateway_tokens": "client"}
"""What the keys of a setting that is an object are names of."""


def _unknown(name: str, source: str) -> str:
    close = difflib.get_close_matches(name, list(Settings.model_fields), n=1, cutoff=0.7)
    hint = f" Did you mean {close[0].upper()}?" if close else ""
    return f"{name.upper()} ({source}): no such setting.{hint}"


def _wrong(loc: tuple[int | str, ...], message: str, source: str) -> str:
    name = str(loc[0])
    inside = ", ".join(str(part) for part in loc[1:])
    place = f"{_INSIDE[name]} {inside}: " if name in _INSIDE and inside else ""
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    text = in_plain_words(message)
    if text == "should be a number" and _label(Settings.model_fields[name]) == "seconds":
        text += " of seconds"
    return f"{name.upper()} ({source}): {place}{text}. {_assignment(name)}"


def _contradictions(settings: Settings, given: Iterable[str], wrong: set[str]) -> Iterator[str]:
    """Yield the problems of values that do not go together. Values that are wrong by themselves are not compared."""
    named = set(given)
    if "segmind_accounts" in named:
        for name in sorted(named & {"segmind_api_key", "segmind_rate_limit", "segmind_max_submits_per_day"}):
            held = "which holds keys, limits and caps"
            yield f"{name.upper()}: set together with SEGMIND_ACCOUNTS, {held}. Remove one of them"
    keys = [account.api_key.get_secret_value() for account in settings.segmind_accounts.values()]
    if len(set(keys)) != len(keys):
        yield "SEGMIND_ACCOUNTS: two accounts have the same api_key, so together they would exceed its rate limit"
    if not {"finetune_settle_time", "segmind_call_timeout"} & wrong and (
        settings.finetune_settle_time <= settings.segmind_call_timeout
    ):
        yield (
            f"FINETUNE_SETTLE_TIME: {settings.finetune_settle_time:g} is not longer than SEGMIND_CALL_TIMEOUT "
            f"({settings.segmind_call_timeout:g}): a submit could still arrive after it was given up as lost"
        )
    if not {"finetune_backoff_base", "finetune_backoff_max"} & wrong and (
        settings.finetune_backoff_max < settings.finetune_backoff_base
    ):
        yield "FINETUNE_BACKOFF_MAX: shorter than FINETUNE_BACKOFF_BASE"


def missing_for_worker(settings: Settings, wrong: Collection[str] = ()) -> Iterator[str]:
    """Yield what is missing for a worker; producers, gateways and Flower do without. Says nothing of settings whose
    values are ``wrong``."""
    if not {"finetune_sinks", "finetune_signing_secret"}.intersection(wrong):
        for sink in parse_sinks(settings.finetune_sinks):
            if sink.kind is SinkKind.WEB and not settings.signing_secrets(sink.origin):
                yield f"FINETUNE_SIGNING_SECRET: missing, and {sink.shown} in FINETUNE_SINKS needs one"
    if not {"segmind_api_key", "segmind_accounts"}.intersection(wrong) and not settings.accounts:
        yield MISSING_KEY


def _label(field: FieldInfo) -> str:
    return next(mark.label for mark in field.metadata if isinstance(mark, Shown))


def _assignment(name: str) -> str:
    return f"Example: {name.upper()}={shlex.quote(_example(Settings.model_fields[name]))}"


def _example(field: FieldInfo) -> str:
    return str((field.examples or [""])[0])


def _default_text(default: Any) -> str:
    if default is None or default in ((), {}):
        return ""
    if isinstance(default, tuple):
        return " ".join(default)
    return f"{default:.10g}" if isinstance(default, float) else str(default)
