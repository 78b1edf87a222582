"""The account's webhooks, through the API that Segmind's own SDK (1.3.0, ``webhooks.py``) uses: it has no other page.

An account has one webhook for fine-tunes at a time (Fast Flux API, Webhooks).
"""

from types import TracebackType
from typing import Annotated, Any, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from finetune_worker.segmind.call import Call, Endpoint, nobody
from finetune_worker.segmind.models import Id, LooseText

FINETUNE = "FINETUNE"
"""The type of event that a webhook for fine-tunes asks for."""


_or_none = BeforeValidator(lambda value: [] if value is None else value)
"""Some programs write an empty list as null."""


class _Reply(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True, hide_input_in_errors=True)


class Webhook(_Reply):
    """One registration; a deleted one stays in the list as inactive."""

    webhook_id: Id = Field(validation_alias=AliasChoices("webhook_id", "id"))
    webhook_url: LooseText = None
    event_types: Annotated[list[str], _or_none] = Field(default_factory=list)
    status: LooseText = None

    @property
    def for_finetunes(self) -> bool:
        """Whether it is the account's webhook for fine-tunes now."""
        active = (self.status or "active").lower() == "active"
        return active and (not self.event_types or FINETUNE in self.event_types)

    @property
    def other_types(self) -> list[str]:
        """The types of event beside fine-tunes that it is for, as far as Segmind says them."""
        return [each for each in self.event_types if each != FINETUNE]


class Delivery(_Reply):
    """One time that Segmind called a webhook."""

    timestamp: LooseText = None
    status: LooseText = None
    response_code: LooseText = None
    error: LooseText = None


class _Listed(_Reply):
    webhooks: Annotated[list[Webhook], _or_none]


class _Logged(_Reply):
    logs: Annotated[list[Delivery], _or_none]


class WebhookClient:
    """One account's webhooks. Every method makes one call, and raises a SegmindError, never OutcomeUnknown."""

    def __init__(
        self,
        url: str,
        api_key: SecretStr,
        *,
        connect_timeout: float = 5.0,
        read_timeout: float = 30.0,
        call_timeout: float = 60.0,
    ) -> None:
        """``url`` is where the API is; times in seconds.

        Raises:
            ValueError: the URL or key cannot be used.
        """
        self._endpoint = Endpoint.open(
            url,
            api_key,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            call_timeout=call_timeout,
            on_call=nobody,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._endpoint.session.close()

    def webhooks(self) -> list[Webhook]:
        """Return all of the account's webhooks, inactive ones too."""
        return Call(self._endpoint, "webhooks").model(_Listed, "GET", "/get").webhooks

    def add(self, url: str) -> None:
        """Register a webhook for fine-tunes; refused while there is another."""
        Call(self._endpoint, "add_webhook").done("POST", "/add", json=_body(url))

    def update(self, webhook_id: str, url: str) -> None:
        """Point a webhook to another URL, for fine-tunes alone: other events are of no use there."""
        body = {"webhook_id": webhook_id, **_body(url)}
        Call(self._endpoint, "update_webhook").done("POST", "/update", json=body)

    def deactivate(self, webhook_id: str) -> None:
        """Have Segmind call a webhook no more, for any event. It stays in the list, as inactive."""
        Call(self._endpoint, "deactivate_webhook").done("GET", "/inactive", params={"webhook_id": webhook_id})

    def deliveries(self, webhook_id: str) -> list[Delivery]:
        """Return when Segmind called a webhook and what came of it, newest first."""
        call = Call(self._endpoint, "webhook_deliveries")
        return call.model(_Logged, "GET", "/dispatch-logs", params={"webhook_id": webhook_id}).logs


def _body(url: str) -> dict[str, Any]:
    return {"webhook_url": url, "event": {"types": [FINETUNE]}}
