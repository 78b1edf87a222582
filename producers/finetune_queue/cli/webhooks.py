"""``finetune webhooks``: the account's one webhook at Segmind, and whether it reaches the gateway.

Each call to Segmind takes a slot of the account's budget, as a worker's does.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from finetune_queue.cli import output
from finetune_queue.cli.output import CliError, ExitCode, usage_error
from finetune_queue.cli.session import quiet_logs
from finetune_queue.gateway.hook_paths import hook_path
from finetune_queue.setting_types import is_loopback
from finetune_queue.settings import Settings, load_settings
from finetune_queue.store import AccountLimits, Accounts, Budget, Call, RedisError, connect

if TYPE_CHECKING:
    from finetune_worker.segmind.webhooks import Webhook, WebhookClient

T = TypeVar("T")

HOLDER = "webhooks"
"""The holder's name of a call slot, where a job has its id."""

SHOWN_DELIVERIES = 5


class Session:
    """One account: its webhooks, within its budget."""

    def __init__(self, settings: Settings, name: str, client: "WebhookClient", budget: Budget) -> None:
        self.settings = settings
        self.account = name
        self.client = client
        self._budget = budget

    def call(self, function: Callable[[], T]) -> T:
        """Make one call to Segmind in a slot of the account, waiting for one as long as a window lasts.

        Raises:
            CliError: there was no slot, or the call failed.
        """
        from finetune_worker.segmind.errors import RateLimited, SegmindError

        slot = self._slot()
        try:
            result = function()
        except RateLimited as error:
            self._budget.pause(slot, error.detail, error.retry_after, code=error.code)
            raise CliError(str(error), ExitCode.UNAVAILABLE, error.code) from None
        except SegmindError as error:
            # The slot is left to its own time-out: this other host's trouble says nothing of the API that workers call.
            raise CliError(str(error), ExitCode.FAILED, error.code) from None
        self._budget.end(slot)
        return result

    def _slot(self) -> Call:
        limits = self.settings.accounts[self.account].rate_limit
        end = time.monotonic() + limits.seconds + 5
        while True:
            found = self._budget.take(self.account, HOLDER, 0.0)
            if isinstance(found, Call):
                return found
            if time.monotonic() > end:
                message = f"The account '{self.account}' had no call free in {limits.seconds:g} s ({found.reason})."
                raise CliError(message, ExitCode.UNAVAILABLE, "no_call_free")
            time.sleep(0.5)

    def path(self) -> str:
        """Return the path of the account's hook at the gateway.

        Raises:
            CliError: there is no secret to make it from.
        """
        secret = self.settings.finetune_hook_secret
        if secret is None:
            message = (
                "FINETUNE_HOOK_SECRET: missing; set the same one here and at the gateway. Make it: openssl rand -hex 32"
            )
            raise CliError(message, ExitCode.SETTINGS, "settings")
        return hook_path(secret, self.account)

    def current(self) -> "Webhook | None":
        """Return the account's webhook for fine-tunes."""
        return next((each for each in self.call(self.client.webhooks) if each.for_finetunes), None)


@contextmanager
def _open(account: str) -> Iterator[Session]:
    settings = load_settings(worker=True)
    quiet_logs(settings)
    if account not in settings.accounts:
        raise usage_error(f"--account {account}: no such account (known: {', '.join(settings.accounts)}).")
    try:
        from finetune_worker.segmind.webhooks import WebhookClient
    except ImportError as error:
        message = f"This needs {error.name}, which is not installed: pip install 'finetune-queue[worker]'"
        raise CliError(message, ExitCode.MISSING, "not_installed") from None
    times = (settings.segmind_connect_timeout, settings.segmind_read_timeout, settings.segmind_call_timeout)
    key = settings.accounts[account].api_key
    client = WebhookClient(
        settings.webhook_api, key, connect_timeout=times[0], read_timeout=times[1], call_timeout=times[2]
    )
    with client, connect(settings.finetune_redis_url) as redis:
        budget = Budget(
            redis,
            call_timeout=settings.segmind_call_timeout + 10,
            handover=settings.finetune_handover,
            first_sweep=settings.finetune_poll_min_interval,
            backoff_base=settings.finetune_backoff_base,
            backoff_max=settings.finetune_backoff_max,
        )
        try:
            _announce(Accounts(redis), account, settings)
            yield Session(settings, account, client, budget)
        except RedisError as error:
            message = f"No call was made: the account's budget is on Redis, which is out of reach ({error})."
            raise CliError(message, ExitCode.UNAVAILABLE, "queue_unavailable") from None


def _announce(accounts: Accounts, name: str, settings: Settings) -> None:
    """Make the account's limit known where no worker has been yet."""
    if name not in accounts.names():
        limit = settings.accounts[name].rate_limit
        accounts.configure(name, AccountLimits(limit.calls, limit.seconds))


def list_webhooks(account: str, *, as_json: bool) -> ExitCode:
    """Show the account's webhooks at Segmind."""
    with _open(account) as session:
        found = session.call(session.client.webhooks)
        shown = [_shown(session, each) for each in found]
    if as_json:
        output.emit(shown)
        return ExitCode.OK
    for each in shown:
        ours = "  this gateway's" if each["ours"] else ""
        output.say(f"{each['webhook_id']}  {each['status']}  {', '.join(each['event_types'])}  {each['url']}{ours}")
    if not shown:
        output.say(f"The account '{account}' has no webhook.")
    return ExitCode.OK


def register(base_url: str, account: str, *, replace: bool, as_json: bool) -> ExitCode:
    """Tell Segmind to call the gateway at ``base_url`` when a fine-tune moves; with ``replace`` instead of another."""
    with _open(account) as session:
        url = _full_url(base_url, session)
        current = session.current()
        if current is not None and not replace and current.webhook_url != url:
            message = (
                f"The account '{account}' has a webhook already, and Segmind allows one: {current.webhook_id}. "
                f"Put this one in its place: {output.program()} webhooks replace {base_url}"
            )
            raise CliError(message, ExitCode.CONFLICT, "webhook_exists", webhook_id=current.webhook_id)
        if current is None:
            session.call(lambda: session.client.add(url))
        elif current.webhook_url != url:
            session.call(lambda: session.client.update(current.webhook_id, url))
    if as_json:
        output.emit({"account": account, "url": _without_token(url)})
    else:
        output.say(f"Segmind calls {_without_token(url)} when a fine-tune of '{account}' moves.")
        output.say(f"Try it: {output.program()} webhooks test")
    return ExitCode.OK


def try_out(account: str, *, as_json: bool) -> ExitCode:
    """Call the account's webhook from here as Segmind does, and show Segmind's own latest deliveries.

    Raises:
        CliError: there is none, or it is not a gateway's with this secret.
    """
    with _open(account) as session:
        current = session.current()
        if current is None:
            message = f"The account '{account}' has no webhook. See: {output.program()} webhooks register --help"
            raise CliError(message, ExitCode.NOT_FOUND, "no_webhook")
        if not _is_ours(session, current.webhook_url):
            message = "The webhook is not one that `finetune webhooks register` made with this FINETUNE_HOOK_SECRET."
            raise CliError(message, ExitCode.CONFLICT, "not_ours", webhook_id=current.webhook_id)
        status, said = _knock(current.webhook_url or "", session)
        log = session.call(lambda: session.client.deliveries(current.webhook_id))[:SHOWN_DELIVERIES]
    url = _without_token(current.webhook_url or "")
    if as_json:
        deliveries = [each.model_dump(exclude_none=True) for each in log]
        output.emit({"account": account, "url": url, "status": status, "said": said, "deliveries": deliveries})
    else:
        output.say(f"{url} answered from here: {said}")
        for each in log:
            output.say(f"  Segmind, {each.timestamp}: {each.status} {each.response_code or each.error or ''}".rstrip())
        if not log:
            output.say("  Segmind has not called it yet.")
    return ExitCode.OK if status == 202 else ExitCode.FAILED


def _knock(url: str, session: Session) -> tuple[int | None, str]:
    """Send a sample; returns the status and what to say of it."""
    import requests

    from finetune_worker.wire.session import open_session

    body = {"event_type": "FINETUNE", "status": "TEST", "sent_by": "finetune webhooks test"}
    timeouts = (session.settings.segmind_connect_timeout, session.settings.segmind_read_timeout)
    with open_session() as client:
        try:
            status = client.post(url, json=body, timeout=timeouts).status_code
        except requests.RequestException as error:
            return None, f"nothing ({type(error).__name__}); Segmind may still reach it"
    if status == 202:
        return status, "202, taken as a hint"
    if status == 404:
        return status, "404: another gateway, or one with another FINETUNE_HOOK_SECRET"
    return status, f"{status}, which is not a gateway's answer"


def _full_url(base_url: str, session: Session) -> str:
    parts = urlsplit(base_url)
    sandbox = session.client.on_loopback and is_loopback(parts.hostname)
    if parts.scheme != "https" and not (parts.scheme == "http" and sandbox):
        raise usage_error(f"{base_url}: should be the gateway's https:// address, as Segmind reaches it.")
    if not parts.hostname or parts.query or parts.fragment or parts.username is not None:
        raise usage_error(f"{base_url}: should be an address alone, like https://finetune.example.com")
    return base_url.rstrip("/") + session.path()


def _is_ours(session: Session, url: str | None) -> bool:
    return session.settings.finetune_hook_secret is not None and (url or "").endswith(session.path())


def _shown(session: Session, webhook: "Webhook") -> dict[str, Any]:
    return {
        "webhook_id": webhook.webhook_id,
        "status": webhook.status or "unknown",
        "event_types": webhook.event_types,
        "url": _without_token(webhook.webhook_url or ""),
        "ours": _is_ours(session, webhook.webhook_url),
    }


def _without_token(url: str) -> str:
    """Return a URL as it may be shown: what makes its path unguessable stays out."""
    head, found, rest = url.partition("/hooks/")
    return f"{head}/hooks/{rest.partition('/')[0]}/..." if found else url
