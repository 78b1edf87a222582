"""Every setting: its type, its default, and what it means.

`Settings(...)` itself reads nothing, so that a test or a program can build one from plain keywords; `load_settings` in
`settings` reads the outside world.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import Field, NonNegativeInt
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from finetune_queue.contract.request import DEFAULT_ACCOUNT
from finetune_queue.contract.sink import plain_origin
from finetune_queue.loopback import is_loopback
from finetune_queue.setting_sources import DEFAULT_SECRETS_DIR
from finetune_queue.setting_types import (
    ANY_ORIGIN,
    FREE_PLAN,
    Accounts,
    AccountSettings,
    ApiKey,
    BaseUrl,
    BucketUrls,
    Count,
    DailyCap,
    Folders,
    Fraction,
    Hosts,
    LongSecret,
    Lower,
    Port,
    RateLimit,
    RedisUrl,
    ReplyTo,
    Seconds,
    Shown,
    SigningSecrets,
    Sinks,
    StorageUrl,
    TokenHashes,
    Upper,
    Words,
)

MISSING_KEY = (
    "SEGMIND_API_KEY: missing, and a worker needs it, or SEGMIND_ACCOUNTS. Example: SEGMIND_API_KEY=SG_0123456789abcdef"
)
"""The problem of a worker without an account."""


class SettingsError(Exception):
    """One or more settings are wrong or missing. The message names all of them and never holds a value."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "A setting is wrong:" if count == 1 else f"{count} settings are wrong:"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


def _setting(default: Any, meaning: str, *, example: str, secret: bool = False) -> Any:
    """Make a field with what the settings table, `.env.example` and errors say of it. A secret is not in the `repr`."""
    return Field(default, description=meaning, examples=[example], repr=not secret)


class Settings(BaseSettings):
    """Every setting, checked. A field's name in capitals is its environment variable."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        enable_decoding=False,  # each complex field reads its own text, so that one bad value does not hide the next
        env_ignore_empty=True,
        dotenv_filtering="only_existing",
    )

    segmind_api_key: Annotated[ApiKey | None, Shown("text")] = _setting(
        None,
        "The key of the one Segmind account, which is then named `default`. Needed by workers only.",
        example="SG_0123456789abcdef",
        secret=True,
    )
    segmind_rate_limit: Annotated[RateLimit, Shown("calls/seconds")] = _setting(
        FREE_PLAN,
        "The account's limit over all its API calls: `5/60` on the free plan, `50/60` on Pro.",
        example="50/60",
    )
    segmind_max_submits_per_day: Annotated[DailyCap | None, Shown("number")] = _setting(
        None,
        "The most paid submits of the account in one day (UTC); 0 stops them. Empty: we apply no cap.",
        example="20",
    )
    segmind_accounts: Accounts = _setting(
        {},
        "Several accounts, instead of the key, limit and cap above: for each name its `api_key`, `rate_limit`, "
        "`max_training` (trainings in flight), `max_submits_per_day` (0 stops submits) and `max_transfers` (uploads "
        "and downloads at once, so that one account's backlog leaves workers to the others).",
        example='{"team-a": {"api_key": "SG_0123456789abcdef", "rate_limit": "50/60"}}',
        secret=True,
    )
    segmind_base_url: BaseUrl = _setting(
        "https://api.segmind.com",
        "Where the API is. On a loopback address plain http is allowed, for the sandbox.",
        example="https://api.segmind.com",
    )
    segmind_webhook_url: BaseUrl = _setting(
        "https://api.spotprod.segmind.com/webhook",
        "Where `finetune webhooks` manages webhooks, as Segmind's SDK does. Not used while SEGMIND_BASE_URL is on a "
        "loopback address: the sandbox has its own.",
        example="https://api.spotprod.segmind.com/webhook",
    )
    segmind_connect_timeout: Seconds = _setting(
        5.0,
        "How long opening an API connection may take; to a host with several addresses three times as long at most.",
        example="5",
    )
    segmind_read_timeout: Seconds = _setting(
        30.0, "How long an API connection may be silent while an answer is awaited.", example="30"
    )
    segmind_call_timeout: Seconds = _setting(60.0, "How long one API call may take in all.", example="60")

    finetune_redis_url: RedisUrl = _setting(
        "redis://localhost:6379/0",
        "The Redis or Valkey server that holds the jobs: `redis://`, `rediss://` (TLS) or `unix://`. Not a Cluster, "
        "not Sentinel.",
        example="redis://localhost:6379/0",
        secret=True,
    )
    finetune_redis_replicas: Annotated[NonNegativeInt, Shown("number")] = _setting(
        0,
        "How many replicas must have a submit's intent on disk before it is sent. Set it to the number that a failover "
        "may promote; then no failover makes a job pay twice.",
        example="1",
    )
    finetune_broker_url: Annotated[RedisUrl | None, Shown("URL")] = _setting(
        None,
        "Another server for Celery's queues. Empty: the same server as the jobs.",
        example="redis://localhost:6379/1",
        secret=True,
    )

    finetune_artifact_url: StorageUrl = _setting(
        "file://./var/artifacts", "Where trained weights are stored.", example="s3://my-bucket/artifacts"
    )
    finetune_staging_url: StorageUrl = _setting(
        "file://./var/staging",
        "Where producers put local datasets for the workers to read.",
        example="s3://my-bucket/staging",
    )
    finetune_dataset_roots: Folders = _setting(
        (),
        f"Folders that `file://` datasets may be under, separated by `{os.pathsep}`. Empty: none may.",
        example="/srv/datasets",
    )

    finetune_dataset_buckets: BucketUrls = _setting(
        (),
        "Buckets (`s3://my-bucket`), or prefixes in them, that `s3://`, `gs://` and `az://` datasets may be read from "
        "with the workers' credentials. Empty: none may. The staging store always may.",
        example="s3://my-bucket/datasets",
    )
    finetune_dataset_hosts: Hosts = _setting(
        (),
        "The only hosts that `https://` datasets may be on. Empty: any public one.",
        example="files.example.com",
    )

    finetune_sinks: Sinks = _setting(
        (),
        "Where the events of all jobs go, as URLs separated by spaces: `celery://QUEUE/task.name`, `stream://NAME`, "
        "`list://NAME`, `https://HOST/PATH` or a broker (`amqp://HOST/VHOST?queue=NAME`). `?events=succeeded,failed` "
        "selects kinds of events.",
        example="celery://orders/orders.finetuned?events=succeeded,failed stream://finetune-events",
        secret=True,
    )
    finetune_reply_to: ReplyTo = _setting(
        ("celery://", "stream://", "list://", "https://"),
        "Which sinks a request's `reply_to` may name: schemes, or one host (`amqp://rabbit.internal`), queue or name. "
        "`https://` alone reaches public addresses only; a host named here may be a private one. `none`: no sinks.",
        example="celery://orders stream:// https:// https://hooks.internal:8443",
    )
    finetune_sink_limit: Seconds = _setting(
        86_400.0, "How long to try to deliver an event to a sink before it becomes a dead letter.", example="86400"
    )
    finetune_signing_secret: SigningSecrets = _setting(
        {},
        "What deliveries to `https://` sinks are signed with (Standard Webhooks): one secret for all, or a JSON object "
        "with one per origin. Two separated by a space both sign, for a change of secrets.",
        example="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        secret=True,
    )

    finetune_lease: Seconds = _setting(
        30.0, "How long a running stage holds its job without a sign of life.", example="30"
    )
    finetune_handover: Seconds = _setting(
        15.0, "How long a sent message may take to be picked up before it is sent again.", example="15"
    )
    finetune_poll_min_interval: Seconds = _setting(
        10.0, "The shortest time between two sweeps of an account.", example="10"
    )
    finetune_poll_share: Fraction = _setting(
        0.02, "The share of an account's calls that sweeps may use while work waits for a call.", example="0.02"
    )
    finetune_unseen_limit: Seconds = _setting(
        900.0,
        "How long a training may be missing from the provider's list before it is looked up by itself.",
        example="900",
    )
    finetune_training_limit: Seconds = _setting(
        21_600.0, "How long a training, or then its deployment, may last before its job fails.", example="21600"
    )
    finetune_settle_time: Seconds = _setting(
        120.0,
        "How long to look for a training whose submit had no clear answer before resubmitting it. "
        "Longer than SEGMIND_CALL_TIMEOUT.",
        example="120",
    )
    finetune_backoff_base: Seconds = _setting(
        2.0, "The wait before a failed step's first retry; then doubles.", example="2"
    )
    finetune_backoff_max: Seconds = _setting(300.0, "The longest wait before a retry.", example="300")
    finetune_max_attempts: Count = _setting(8, "How many times a failing stage is tried.", example="8")
    finetune_retention: Seconds = _setting(2_592_000.0, "How long finished jobs are kept.", example="2592000")
    finetune_shutdown_timeout: Seconds = _setting(
        25.0, "How long a stopping worker lets its running stages finish.", example="25"
    )
    finetune_probe_port: Annotated[Port | None, Shown("port")] = _setting(
        None,
        "Where a worker answers `/livez` and `/readyz`, on all addresses: an orchestrator asks from outside. Empty: "
        "nowhere.",
        example="8081",
    )

    finetune_gateway_tokens: TokenHashes = _setting(
        {},
        "Who may use the HTTP gateway: for each client's name the SHA-256 of its token, as `finetune gateway token "
        "NAME` prints it. Empty: the gateway only listens on loopback addresses, and asks for no token.",
        example='{"team-a": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}',
    )
    finetune_gateway_readers: Words = _setting(
        (),
        "Names of clients in `FINETUNE_GATEWAY_TOKENS` that may only read, such as Prometheus or an autoscaler: they "
        "cannot submit or change anything.",
        example="prometheus keda",
    )
    finetune_gateway_rate_limit: Annotated[RateLimit, Shown("calls/seconds")] = _setting(
        RateLimit(calls=100, seconds=1), "How many requests each client of a gateway process may send.", example="100/1"
    )
    finetune_hook_secret: Annotated[LongSecret | None, Shown("text")] = _setting(
        None,
        "From this the gateway makes an unguessable path for each account's webhook; `finetune webhooks register` "
        "tells it to Segmind. Empty: no webhook is accepted.",
        example="c0ffee" * 11,
        secret=True,
    )

    finetune_log_format: Annotated[Literal["json", "console"], Lower, Shown("json or console")] = _setting(
        "json", "Log lines as JSON for machines or as text for a terminal.", example="console"
    )
    finetune_log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], Upper, Shown("DEBUG, INFO, WARNING or ERROR")
    ] = _setting("INFO", "The least severe log line that is written.", example="DEBUG")

    finetune_secrets_dir: Annotated[Path | None, Shown("folder")] = _setting(
        None,
        f"A folder of files named like settings, one value in each. `{DEFAULT_SECRETS_DIR}` is read if it exists.",
        example="/etc/finetune/secrets",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - this and the next: pydantic-settings' signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Keywords only: `load_settings` reads the sources, so that it can say where a wrong value came from."""
        return (init_settings,)

    @property
    def accounts(self) -> dict[str, AccountSettings]:
        """The Segmind accounts by name; empty in a producer that knows no key."""
        if self.segmind_api_key is None:
            return dict(self.segmind_accounts)
        only = AccountSettings(
            api_key=self.segmind_api_key,
            rate_limit=self.segmind_rate_limit,
            max_submits_per_day=self.segmind_max_submits_per_day,
        )
        return {DEFAULT_ACCOUNT: only}

    @property
    def unknown_readers(self) -> list[str]:
        """The names in FINETUNE_GATEWAY_READERS that have no token: misspelt, one would leave its client all rights."""
        return sorted(set(self.finetune_gateway_readers) - set(self.finetune_gateway_tokens))

    @property
    def segmind_is_loopback(self) -> bool:
        """Whether the API is on this machine (the sandbox), where plain http and loopback addresses are allowed."""
        return is_loopback(urlsplit(self.segmind_base_url).hostname)

    @property
    def webhook_api(self) -> str:
        """Where webhooks are managed."""
        return f"{self.segmind_base_url}/webhook" if self.segmind_is_loopback else self.segmind_webhook_url

    @property
    def broker_url(self) -> str:
        """The broker's URL in kombu's spelling, which writes a socket file as `redis+socket://`."""
        url = self.finetune_broker_url or self.finetune_redis_url
        parts = urlsplit(url)
        if parts.scheme != "unix":
            return url
        database = parse_qs(parts.query).get("db", ["0"])[-1]
        return f"redis+socket://{parts.netloc}{parts.path}?virtual_host={database}"

    @property
    def secret_values(self) -> set[str]:
        """Every secret in these settings, for redaction: keys, and passwords of server URLs in both spellings."""
        found = {account.api_key.get_secret_value() for account in self.accounts.values()}
        if self.finetune_hook_secret is not None:
            found.add(self.finetune_hook_secret.get_secret_value())
        for url in filter(None, (self.finetune_redis_url, self.finetune_broker_url, *self.finetune_sinks)):
            parts = urlsplit(url)
            passwords = [parts.password or "", *parse_qs(parts.query).get("password", [])]
            found.update(form for password in passwords for form in (password, unquote(password)) if form)
        for secrets in self.finetune_signing_secret.values():
            found.update(secret.get_secret_value() for secret in secrets)
        return found

    def signing_secrets(self, origin: str) -> tuple[str, ...]:
        """Return the secrets that deliveries to this origin are signed with; without any, they cannot be signed."""
        secrets = {plain_origin(each): values for each, values in self.finetune_signing_secret.items()}
        found = secrets.get(plain_origin(origin)) or self.finetune_signing_secret.get(ANY_ORIGIN) or ()
        return tuple(each.get_secret_value() for each in found)

    def require_worker(self) -> None:
        """Refuse settings that no worker can run on.

        Raises:
            SettingsError: No account has an API key.
        """
        if not self.accounts:
            raise SettingsError([MISSING_KEY])
