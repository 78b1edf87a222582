"""The request: what a caller asks for, the same in the SDK, the CLI, over HTTP and in a raw Celery message."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic.config import JsonDict

from finetune_queue.contract.dataset_url import CONTROL, DATASET_SCHEMA, check_dataset
from finetune_queue.contract.sink import Sink, parse_sink, parse_sinks
from finetune_queue.errors import InvalidRequestError
from finetune_queue.plain_words import escaped, in_plain_words

STORED = "stored"
"""The validation context of a request that is read from a stored job. The checks that compare with it let everything
pass: what was accepted once stays readable, also for a version that would not accept it today."""

_VISIBLE = r"[^\s\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
"""A visible character: neither white space nor a format character, such as a zero-width space."""

_READABLE: JsonDict = {"pattern": _VISIBLE, "not": {"pattern": f"[{CONTROL}]"}}


def _check_name(value: object, info: ValidationInfo) -> object:
    """Refuse control characters, before blanks around the name are stripped: some control characters count as blanks.
    Also refuse a name without a visible character."""
    if info.context == STORED or not isinstance(value, str):
        return value
    if re.search(f"[{CONTROL}]", value):
        raise ValueError("should hold no line breaks or other control characters")
    if value.strip() and not re.search(_VISIBLE, value):
        raise ValueError("should hold a character that can be seen")
    return value


# Strict texts: bytes are none, though pydantic would read them.
Name = Annotated[
    str,
    StringConstraints(strict=True, strip_whitespace=True, min_length=1, max_length=128),
    BeforeValidator(_check_name),
    Field(json_schema_extra=_READABLE),
]
Text = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=2000)]


def _check_prompt(prompt: str, info: ValidationInfo) -> str:
    """Refuse a prompt without a visible character: the API would refuse it only after the upload of the dataset."""
    if info.context != STORED and not re.search(_VISIBLE, prompt):
        raise ValueError("should not be empty")
    return prompt


SERVED = ("FAST_FLUX", "FLUX_PRO")
"""The models whose submit takes the fields that a request has; FLUX and QWEN need others (Segmind's pages of them)."""


def _check_base_model(name: str, info: ValidationInfo) -> str:
    if info.context != STORED and name not in SERVED:
        raise ValueError(f"should be {' or '.join(SERVED)}")
    return name


BaseModelName = Annotated[
    str,
    StringConstraints(strict=True),
    AfterValidator(_check_base_model),
    Field(json_schema_extra={"enum": list(SERVED)}),
]
Prompt = Annotated[Text, AfterValidator(_check_prompt), Field(json_schema_extra={"pattern": _VISIBLE})]
USUAL_PRIORITY = 5
"""The priority of a request that names none."""

ACCOUNT_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
ACCOUNT_RULE = "should be letters, digits and . _ -, beginning with a letter or digit, 63 at most"
"""``ACCOUNT_NAME`` in words, to follow a field's name."""
DEFAULT_ACCOUNT = "default"
"""The account of a request that names none, and of the key in settings that name no accounts."""

AccountName = Annotated[str, StringConstraints(strict=True, pattern=ACCOUNT_NAME)]
LABEL_KEY = r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,62}$"
LABEL_KEY_RULE = "letters, digits and . _ / -, beginning with a letter or digit, 63 at most"
LabelKey = Annotated[str, StringConstraints(strict=True, pattern=LABEL_KEY)]
LabelValue = Annotated[str, StringConstraints(strict=True, max_length=256)]


def _check_number(value: object) -> object:
    """Refuse strings and booleans, which pydantic would turn into a number: they may be meant for another field."""
    if isinstance(value, str | bytes | bool):
        raise ValueError("should be a number")  # noqa: TRY004 - pydantic takes no other kind for a wrong value
    return value


def _check_moment(value: object, read: ValidatorFunctionWrapHandler) -> object:
    """Refuse numbers, also as text: pydantic takes them for Unix time, but whoever writes 90 means from now. One
    sentence says whatever is wrong. In UTC, so that one moment is one, whatever zone a repeat of the request names."""
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        number = None
    with suppress(ValidationError, OverflowError):  # the second in the years 1 and 9999
        if number is None and isinstance(value, str | datetime | None):
            moment: datetime | None = read(value)
            return None if moment is None else moment.astimezone(UTC)
    raise ValueError("should be a time with a time zone, like 2026-01-31T18:00:00Z")


def check_label_keys(labels: object) -> object:
    """Refuse the keys that ``LABEL_KEY`` does not match, before pydantic does: its error would not name them.

    Raises:
        ValueError: with a sentence that names up to three of them.
    """
    wrong = [key for key in labels if not _is_label_key(key)] if isinstance(labels, Mapping) else []
    if wrong:
        shown = ", ".join(f"'{escaped(str(key)[:64])}'" for key in wrong[:3])
        raise ValueError(f"a key should be {LABEL_KEY_RULE} (not {shown})")
    return labels


def _is_label_key(key: object) -> bool:
    return isinstance(key, str) and re.fullmatch(LABEL_KEY, key) is not None


def _check_parameters(parameters: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Refuse values that make no sense for the parameters in the API's description: they would be paid for and ignored,
    or refused by Segmind. Parameters that are not in it pass."""
    if info.context == STORED:
        return parameters
    steps = parameters.get("steps", 1)
    if isinstance(steps, bool) or not isinstance(steps, int | float) or steps < 1 or steps % 1:
        raise ValueError("steps should be a whole number, 1 or more")
    if not isinstance(parameters.get("face_crop", False), bool):
        raise ValueError("face_crop should be true or false")  # noqa: TRY004 - pydantic takes no other kind
    if not isinstance(kind := parameters.get("finetune_type", "LORA"), str) or not kind:
        raise ValueError('finetune_type should be a text, like "LORA"')
    if kind != "LORA" and info.data.get("base_model") == "FAST_FLUX":
        raise ValueError('finetune_type should be "LORA" for FAST_FLUX')
    return parameters


_PARAMETERS: JsonDict = {
    "properties": {
        "steps": {"type": "integer", "minimum": 1},
        "face_crop": {"type": "boolean"},
        "finetune_type": {"type": "string", "minLength": 1},
    }
}
"""The rules of ``_check_parameters`` for every base model, in JSON Schema."""

_FAST_FLUX: JsonDict = {
    "if": {"properties": {"base_model": {"const": "FAST_FLUX"}}},
    "then": {"properties": {"advance_parameters": {"properties": {"finetune_type": {"const": "LORA"}}}}},
}
"""The rule of ``_check_parameters`` for FAST_FLUX alone, in JSON Schema."""


_DEEPEST = 100
"""Levels of nested parameters; pydantic reads some 250, but cannot write all that it reads."""


def _depth(value: object) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


def _check_json(parameters: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Refuse what Python reads from JSON text but cannot write as valid JSON: NaN, infinity (also from 1e999), and a
    lone surrogate, as JavaScript leaves of an emoji that was cut in two. Also refuse values nested too deeply."""
    if info.context != STORED and _depth(parameters) > _DEEPEST:
        raise ValueError(f"should not be nested more than {_DEEPEST} levels deep")
    try:
        json.dumps(parameters, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a character (a lone surrogate), which is not valid Unicode") from None
    except ValueError:
        raise ValueError("holds a number that JSON cannot carry (NaN or infinity)") from None
    return parameters


def _path_text(dataset: object) -> object:
    """Turn a ``pathlib.Path``, which only a Python program can give, into text."""
    return os.fspath(dataset) if isinstance(dataset, os.PathLike) else dataset


def _check_sink(url: str) -> str:
    parse_sink(url)
    return url


SinkUrl = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=2000), AfterValidator(_check_sink)]


class RequestError(ValueError):
    """A request that cannot be accepted. ``problems`` has one sentence for each thing that is wrong."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("The fine-tune request cannot be accepted: " + "; ".join(problems))


class FineTuneRequest(BaseModel):
    """One fine-tune to run.

    The first fields carry the API's own names and are passed on (Fast Flux API, section 1). ``dataset`` becomes
    ``data_source_path``. The rest is ours. An unknown field is refused: in a paid request a typo must not pass.
    """

    # Errors show no input: URLs may hold passwords.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, json_schema_extra=_FAST_FLUX)

    name: Name = Field(description="The fine-tune's name at Segmind.")
    instance_prompt: Prompt = Field(description="The prompt that describes the subject, with the trigger word in it.")
    trigger_word: Name = Field(description="The rare word that will call up the subject.")
    base_model: BaseModelName = Field(default="FAST_FLUX", description="Segmind's model to tune.")
    theme: Name = Field(default="subject", description="Segmind's training theme.")
    segmind_public: StrictBool = Field(default=False, description="Whether the tuned model is public at Segmind.")
    advance_parameters: Annotated[
        dict[str, JsonValue], AfterValidator(_check_json), AfterValidator(_check_parameters)
    ] = Field(
        default={"steps": 2000, "face_crop": False, "finetune_type": "LORA"},
        description="Training parameters, passed on as they are: the API knows keys that this service does not. They "
        "replace the default as a whole: give each that is wanted, also of the default.",
        json_schema_extra=_PARAMETERS,
    )
    dataset: Annotated[Text, AfterValidator(check_dataset), BeforeValidator(_path_text)] = Field(
        description="https:// URL of a public ZIP, or file://, s3://, gs://, az:// URL, without a user name or "
        "password; the key of an object is written as it is, the rest percent-encoded; the SDK and the CLI also take a "
        "local ZIP or folder.",
        json_schema_extra=DATASET_SCHEMA,
    )

    fetch_dataset: StrictBool = Field(
        default=False,
        description="Download an https:// dataset, check it and upload it, for a link that Segmind could not read.",
    )
    account: AccountName = Field(default=DEFAULT_ACCOUNT, description="Which configured Segmind account pays.")
    priority: Annotated[int, BeforeValidator(_check_number)] = Field(
        default=USUAL_PRIORITY, ge=0, le=9, description="0 (last) to 9 (first) among the account's jobs."
    )
    labels: Annotated[dict[LabelKey, LabelValue], BeforeValidator(check_label_keys)] = Field(
        default_factory=dict,
        max_length=32,
        description="Free labels, kept on the job and in every event.",
        json_schema_extra={"additionalProperties": False},  # beside the pattern of the keys
    )
    reply_to: tuple[SinkUrl, ...] = Field(
        default=(),
        max_length=8,
        description="Sinks that get this job's events, besides the service's own, by URL: celery://QUEUE/task.name, "
        "stream://NAME, list://NAME, https://HOST/PATH or a broker (amqp://HOST/VHOST?queue=NAME). "
        "?events=succeeded,failed selects kinds of events.",
    )
    wait_for: Literal["trained", "available"] = Field(
        default="trained", description="trained: done when the weights are stored; available: also deployed."
    )
    idempotency_key: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=255)] | None = Field(
        default=None, description="The same key and request give the same job."
    )
    deadline: Annotated[AwareDatetime | None, WrapValidator(_check_moment)] = Field(
        default=None, description="When to give up (ISO 8601, with a time zone)."
    )

    if not TYPE_CHECKING:  # a type checker takes the arguments from the fields

        def __init__(self, **fields: Any) -> None:
            """Make a request of its fields.

            Raises:
                InvalidRequestError: with one sentence for every field that is wrong.
            """
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise InvalidRequestError(_sentences(error)) from None

        # Tells pydantic that model_validate need not call this method, as it would call any other __init__.
        __init__.__pydantic_base_init__ = True

    def digest(self) -> str:
        """Return a SHA-256 that is equal for equal requests; the idempotency key itself does not count."""
        body = self.model_dump(mode="json", exclude={"idempotency_key"})
        return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """The sinks of ``reply_to``."""
        return parse_sinks(self.reply_to)

    def expired(self, now: datetime) -> bool:
        """Tell whether the caller's deadline has passed at ``now``."""
        return self.deadline is not None and now >= self.deadline


def parse_request(raw: Any) -> FineTuneRequest:
    """Read a request from decoded JSON.

    Raises:
        RequestError: with one sentence for every field that is wrong.
    """
    if not isinstance(raw, dict):
        raise RequestError([f"expected a JSON object with the request's fields, got {type(raw).__name__}"])
    try:
        return FineTuneRequest.model_validate(raw)
    except ValidationError as error:
        raise RequestError(_sentences(error)) from None


def _sentences(error: ValidationError) -> list[str]:
    return [_sentence(problem) for problem in error.errors(include_url=False)]


def _sentence(problem: Any) -> str:
    field = ".".join(str(part) for part in problem["loc"]) or "request"
    match problem["type"]:
        case "missing":
            return f"{field}: is required"
        case "extra_forbidden" if field == "data_source_path":
            return "data_source_path: is called 'dataset' here"
        case "extra_forbidden":
            known = ", ".join(FineTuneRequest.model_fields)
            return f"{field}: is not a field of a request (known: {known})"
        case "string_pattern_mismatch" if field == "account":
            return f"account: {ACCOUNT_RULE}"
        case _:
            said = in_plain_words(problem["msg"])
            return f"{field}: {said[0].lower()}{said[1:]}"
