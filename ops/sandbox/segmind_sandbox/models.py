"""What the API accepts: the bodies of its requests, checked field by field."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
BaseModelName = Literal["FAST_FLUX", "FLUX", "FLUX_PRO", "QWEN"]
_NEEDED: dict[str, tuple[str, ...]] = {
    "FAST_FLUX": (),  # the page's sample has a theme, and the official SDK may leave it out
    "FLUX": ("train_type", "machine_type"),
    "FLUX_PRO": (),
    "QWEN": ("train_type", "machine_type"),
}


def _http_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
        raise ValueError("must be a http(s) URL")
    return text


HttpUrl = Annotated[str, AfterValidator(_http_url)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class AdvanceParameters(BaseModel):
    """Checked where the page names a key; open to others, which the siblings use."""

    model_config = ConfigDict(strict=True, extra="allow")

    steps: int | None = Field(None, ge=1)
    face_crop: bool | None = None
    finetune_type: Literal["LORA", "FULL"] | None = None


class Submit(_Body):
    """Fast Flux API, section 1, and the fields of the sibling APIs (FLUX, FLUX_PRO, QWEN)."""

    name: Text
    data_source_path: HttpUrl
    instance_prompt: Text
    trigger_word: Text
    base_model: BaseModelName
    theme: Text | None = None
    segmind_public: bool = False
    advance_parameters: AdvanceParameters = Field(default_factory=AdvanceParameters)
    train_type: Literal["LORA"] | None = None
    machine_type: Text | None = None
    auto_caption: bool | None = None
    learning_rate: float | None = None

    @model_validator(mode="after")
    def _fits_the_model(self) -> Self:
        missing = [name for name in _NEEDED[self.base_model] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"{', '.join(missing)} required for {self.base_model}")
        if self.base_model == "FAST_FLUX" and self.advance_parameters.finetune_type == "FULL":
            raise ValueError("advance_parameters.finetune_type must be LORA for FAST_FLUX")
        return self

    def parameters(self) -> dict[str, Any]:
        """advance_parameters as they were sent."""
        return self.advance_parameters.model_dump(exclude_unset=True)


class Details(_Body):
    """Section 2."""

    request_id: Text


class Presign(_Body):
    """Section 4. The official SDK sends the name alone."""

    name: Annotated[str, StringConstraints(pattern=r"^[^/\\\x00-\x1f]{1,255}$")]
    extension: Literal[".zip"] = ".zip"
    public: bool = False


class AccessUpdate(_Body):
    """Section 5: form fields, hence strings."""

    request_id: Text
    segmind_public: Literal["True", "False"]


class FileLink(_Body):
    """The sibling APIs' GET /finetune/request/file/download."""

    cloud_storage_url: HttpUrl


class WebhookEvent(_Body):
    """The event filter of a webhook."""

    types: list[Text] = Field(min_length=1)


class WebhookAdd(_Body):
    """POST /webhook/add, as the official SDK sends it."""

    webhook_url: HttpUrl
    event: WebhookEvent


class WebhookUpdate(WebhookAdd):
    """POST /webhook/update."""

    webhook_id: Text


class WebhookId(_Body):
    """The query of /webhook/inactive and /webhook/dispatch-logs."""

    webhook_id: Text


class BadRequestError(Exception):
    """The request's content is refused with 400; the text says why."""


M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], fields: object) -> M:
    """Check a body. Raises BadRequestError with one sentence for all wrong fields."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        findings = [f"{'.'.join(map(str, found['loc'])) or 'body'}: {found['msg']}" for found in error.errors()]
        raise BadRequestError("; ".join(findings)) from None
