"""Settings of the sandbox: environment variables SANDBOX_..., or flags of ``python -m segmind_sandbox``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from segmind_sandbox.faults import AnyFault

DEFAULT_API_KEY = "sandbox-key"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """So many calls in any ``seconds`` seconds."""

    calls: int
    seconds: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``CALLS/SECONDS``, such as ``50/60``. Raises ValueError for anything else."""
        calls, slash, seconds = text.partition("/")
        if not slash or not calls.isdecimal():
            raise ValueError(f"a rate limit is CALLS/SECONDS, such as 50/60, not {text!r}")
        limit = cls(int(calls), float(seconds))
        if limit.calls < 1 or not 0 < limit.seconds < float("inf"):
            raise ValueError(f"a rate limit needs at least 1 call in more than 0 seconds, not {text!r}")
        return limit

    def __str__(self) -> str:
        return f"{self.calls}/{self.seconds:g}"


def _checked_rate(text: str) -> str:
    return str(RateLimit.parse(text))


RateText = Annotated[str, AfterValidator(_checked_rate)]


class SandboxSettings(BaseSettings):
    """Everything that can be chosen about a sandbox. Durations are seconds, sizes are bytes."""

    model_config = SettingsConfigDict(env_prefix="SANDBOX_", extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(0, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    public_url: str | None = Field(
        None, description="base of the storage and weights URLs handed out; by default that of the request"
    )
    api_keys: dict[str, RateText | None] = Field(
        {DEFAULT_API_KEY: None},
        description="accepted API keys, each an account of its own with its own rate limit (null: rate_limit)",
    )
    rate_limit: RateText = Field("50/60", description="calls per seconds of an account over all API endpoints")
    rate_algorithm: Literal["sliding", "fixed"] = Field("sliding", description="sliding-window log, or fixed window")
    retry_after: bool = Field(default=True, description="send Retry-After with a 429")
    training_seconds: float = Field(8.0, ge=0, description="from the submit to TRAINING_COMPLETED")
    deploy_seconds: float = Field(2.0, ge=0, description="from TRAINING_COMPLETED to AVAILABLE")
    weights_bytes: int = Field(4 << 20, ge=4096, le=2 << 30, multiple_of=8, description="size of a weights file")
    list_carries_weights_url: bool = Field(default=False, description="cloud_storage_url in list, not only in details")
    list_lag_seconds: float = Field(0.0, ge=0, description="a new job appears in list only after this time")
    private_weights: bool = Field(
        default=False, description="weights of FAST_FLUX need a signed link, as the siblings'"
    )
    link_seconds: int = Field(3600, ge=1, le=604800, description="life of presigned uploads and signed weights links")
    credits: float = Field(100_000.0, ge=0, description="what each account starts with")
    training_cost: float = Field(0.1, ge=0, description="credits taken by an accepted submit")
    webhook_url: str | None = Field(None, description="register this webhook for every account at start")
    webhook_timeout: float = Field(5.0, gt=0, description="time allowed for one delivery")
    faults: list[AnyFault] = Field(default_factory=list, description="faults that are active from the start")
    seed: int | None = Field(None, description="makes faults with a probability repeatable")
