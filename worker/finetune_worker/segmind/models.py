"""The API's messages (Fast Flux API, sections 1 to 6). Unknown statuses survive."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from finetune_queue.plain_words import encodable
from finetune_worker.segmind.replies import made_safe

TRAINED_STATUSES = frozenset({"TRAINING_COMPLETED", "INFERENCE_QUEUED", "DEPLOYING", "AVAILABLE"})
"""The training is over and its weights exist, or will in a moment."""

KNOWN_STATUSES = TRAINED_STATUSES | {"REQUESTED", "DATA_PROCESSING", "TRAINING_INITIATED"}
"""Every word that Segmind's pages name."""

_LONGEST_URL = 8_192
_LONGEST_MESSAGE = 1_000
_LONGEST_STATUS = 200
"""Characters: what is longer is cut, as it is kept with the job and in each of its events."""

_FAILED_WORDS = ("FAIL", "ERROR", "CANCEL", "ABORT", "REJECT")

Id = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]

_timestamp: TypeAdapter[datetime] = TypeAdapter(datetime)


def _text_or_none(value: Any) -> Any:
    """Return a value as text: null and "" as None, what is not a string as its JSON. Half of a character, which
    JavaScript leaves of an emoji that was cut, becomes an escape. One odd value must not make a reply unreadable."""
    if value is None or isinstance(value, str):
        return encodable(value or "").strip()[:_LONGEST_URL] or None
    return json.dumps(value)[:_LONGEST_URL]


def _said_or_none(value: Any) -> Any:
    """As `_text_or_none`, but None also for 0, false, [] and {}, and for the words "null" and "none", which some
    programs write for null: any of these, taken for an error message, would give up a paid training."""
    if isinstance(value, str) and value.strip().lower() in {"null", "none"}:
        return None
    return _text_or_none(value or None)


def _message_or_none(value: Any) -> Any:
    """As `_said_or_none`, but safe to show: Segmind's words for an error may quote a signed URL."""
    said = _said_or_none(value)
    return None if said is None else made_safe(said, _LONGEST_MESSAGE) or None


def _time_or_none(value: Any) -> datetime | None:
    try:
        found = _timestamp.validate_python(value)
    except ValidationError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _status_word(value: Any) -> Any:
    return encodable(value)[:_LONGEST_STATUS] if isinstance(value, str) else "" if value is None else value


LooseText = Annotated[str | None, BeforeValidator(_text_or_none)]
SaidText = Annotated[str | None, BeforeValidator(_said_or_none)]
MessageText = Annotated[str | None, BeforeValidator(_message_or_none)]
LooseTime = Annotated[datetime | None, BeforeValidator(_time_or_none)]


def is_trained(status: str) -> bool:
    """Tell whether a status says that the training is over and gave weights."""
    return status.strip().upper() in TRAINED_STATUSES


class Reply(BaseModel):
    """What Segmind says. Fields that are not named here are dropped: one may hold a signed URL in another spelling."""

    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True, hide_input_in_errors=True)


class SubmitRequest(BaseModel):
    """The body of a submit. ``advance_parameters`` are sent as they are: siblings of Fast Flux take others."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str
    data_source_path: str
    instance_prompt: str
    trigger_word: str
    base_model: str = "FAST_FLUX"
    theme: str | None = "subject"
    segmind_public: bool = False
    advance_parameters: dict[str, JsonValue] = Field(default_factory=dict)


class SubmitReply(Reply):
    """The answer to a submit. Fast Flux says ``finetune_id``, its Qwen sibling ``request_id``, for the same thing."""

    finetune_id: Id = Field(validation_alias=AliasChoices("finetune_id", "request_id"))
    status: Annotated[str, BeforeValidator(_status_word)] = ""


class _Finetune(Reply):
    """What an item of the list and the details share."""

    finetune_id: Id = Field(validation_alias=AliasChoices("finetune_id", "request_id"))
    name: LooseText = None
    status: Annotated[str, BeforeValidator(_status_word)] = ""
    data_source_path: LooseText = None
    error_message: MessageText = None
    cloud_storage_url: SaidText = None

    @property
    def known(self) -> bool:
        """Whether ``status`` is a word that Segmind documents."""
        return self._word in KNOWN_STATUSES

    @property
    def trained(self) -> bool:
        """Whether the training is over and gave weights."""
        return is_trained(self.status)

    @property
    def available(self) -> bool:
        """Whether the model is deployed for inference."""
        return self._word == "AVAILABLE"

    @property
    def failed(self) -> bool:
        """Whether the training or its deployment failed, as far as one can tell: Segmind documents no status for it, so
        an ``error_message`` counts, and a word like FAILED.

        Never true of a training that is over (`trained`): its weights are paid for, whatever a message says.
        """
        if self.trained:
            return False
        return self.error_message is not None or any(part in self._word for part in _FAILED_WORDS)

    @property
    def undeployed(self) -> bool:
        """Whether the deployment failed, for a training that is known to be over: here a message alone is enough."""
        return not self.available and (self.failed or self.error_message is not None)

    @property
    def _word(self) -> str:
        return self.status.strip().upper()


class FinetuneItem(_Finetune):
    """One item of the list (section 3). It may lack ``cloud_storage_url`` when the details have it."""


class FinetuneDetails(_Finetune):
    """One fine-tune's details (section 2)."""

    slug: SaidText = None
    created_ts: LooseTime = None
    instance_prompt: LooseText = None

    @model_validator(mode="before")
    @classmethod
    def _unwrap(cls, value: Any) -> Any:
        return value["finetune"] if isinstance(value, dict) and "finetune" in value else value


class PresignedUpload(Reply):
    """Where to PUT a dataset (section 4). The URL's signature is a password: `repr` and logs show stars."""

    presigned_url: SecretStr = Field(min_length=1, max_length=_LONGEST_URL)
    s3_url: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=_LONGEST_URL)]

    @property
    def expires_at(self) -> datetime | None:
        """When the URL ends (X-Amz-Date + X-Amz-Expires, or the older Expires); None if it does not say."""
        try:
            if started := self._parameter("x-amz-date"):
                begin = datetime.strptime(started, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                return begin + timedelta(seconds=int(self._parameter("x-amz-expires") or ""))
            return datetime.fromtimestamp(int(self._parameter("expires") or ""), UTC)
        except (ValueError, OverflowError, OSError):
            return None

    @property
    def signed_headers(self) -> frozenset[str]:
        """The headers that the PUT must carry (X-Amz-SignedHeaders), in lower case; empty if it does not say."""
        return frozenset(filter(None, (self._parameter("x-amz-signedheaders") or "").lower().split(";")))

    def _parameter(self, name: str) -> str | None:
        query = parse_qs(urlsplit(self.presigned_url.get_secret_value()).query)
        return next((values[0] for key, values in query.items() if key.lower() == name), None)


class Credits(Reply):
    """What the account may still spend."""

    credits: float = 0.0
    free_credits: float = Field(default=0.0, validation_alias="free-credits")

    @model_validator(mode="before")
    @classmethod
    def _says_credits(cls, value: Any) -> Any:
        if isinstance(value, dict) and not {"credits", "free-credits"} & value.keys():
            raise ValueError("has no credits")  # an error with a success, which is not an empty account
        return value

    @property
    def total(self) -> float:
        return self.credits + self.free_credits
