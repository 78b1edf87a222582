"""``finetune webhooks``: the account's one webhook at Segmind, and whether it reaches the gateway."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from finetune_queue.cli import output, words
from finetune_queue.cli.options import DEFAULT_ACCOUNT
from finetune_queue.cli.output import CliError, ExitCode, usage_error
from finetune_queue.cli.segmind import Session, knock, known_account, open_session
from finetune_queue.cli.session import quiet_logs
from finetune_queue.contract.request import ACCOUNT_NAME, ACCOUNT_RULE
from finetune_queue.gateway.hook_paths import hook_path
from finetune_queue.loopback import is_loopback
from finetune_queue.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from finetune_worker.segmind.webhooks import Webhook

SHOWN_DELIVERIES = 5

_AND_SO = ", and whoever listens there hears nothing any more"
_INSTEAD = "Send them the events of this service instead: by FINETUNE_SINKS, or a request's reply_to (docs/events.md)."


@dataclass(frozen=True)
class _Ended:
    """A webhook that Segmind will call no more: its URL without the token, what that means for whoever listens there,
    and what they can do instead."""

    url: str
    consequence: str
    instead: str

    @classmethod
    def of(cls, session: Session, webhook: "Webhook") -> Self:
        url = shown_url(webhook)
        consequence, instead = "", ""
        if not is_ours(session, webhook.webhook_url):
            consequence, instead = _AND_SO, f" {_INSTEAD}"
        if webhook.other_types:
            others = words.printable(", ".join(webhook.other_types))
            consequence += f", and nobody gets its other events any more ({others})"
            instead += " For its other events register another webhook in Segmind's console."
        return cls(url, consequence, instead)


@contextmanager
def _open(account: str) -> Iterator[Session]:
    settings = load_settings()
    if not settings.accounts:
        raise SettingsError(["SEGMIND_API_KEY: missing, and this command needs it, or SEGMIND_ACCOUNTS"])
    quiet_logs(settings)
    with open_session(settings, account) as session:
        yield session


def full_url(base_url: str, account: str, *, as_json: bool) -> ExitCode:
    """Print the URL to give Segmind by hand, token and all, without a call. It needs no API key: where there is none,
    as at a gateway, any account may be meant.

    Raises:
        SettingsError, CliError: there is no FINETUNE_HOOK_SECRET, no such account, or the address cannot be used.
    """
    settings = load_settings()
    if settings.accounts:
        known_account(settings, account)
    elif re.fullmatch(ACCOUNT_NAME, account) is None:
        raise usage_error(f"--account {account}: {ACCOUNT_RULE}.")
    url = _full_url(base_url, settings, account)
    if as_json:
        output.emit({"account": account, "url": url})
    else:
        output.say(url)
    output.note("This URL is a secret: give it to Segmind alone. Who knows it can have the gateway sweep this account.")
    return ExitCode.OK


def list_webhooks(account: str, *, as_json: bool) -> ExitCode:
    """Show the account's webhooks at Segmind."""
    with _open(account) as session:
        found = session.call_webhooks(session.hooks.webhooks)
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
        url = _full_url(base_url, session.settings, account)
        current = _current(session)
        old = None
        if current is not None and current.webhook_url != url:
            old = _Ended.of(session, current)
            if not replace:
                message = (
                    f"The account '{account}' already has a webhook, and Segmind allows only one: "
                    f"{current.webhook_id}, which calls {old.url}. To replace it{old.consequence}: "
                    f"{_command('replace', account, base_url)}"
                )
                raise CliError(message, ExitCode.CONFLICT, "webhook_exists", webhook_id=current.webhook_id, url=old.url)
        if current is None:
            session.call_webhooks(lambda: session.hooks.add(url))
        elif old is not None:
            session.call_webhooks(lambda: session.hooks.update(current.webhook_id, url))
    if as_json:
        output.emit({"account": account, "url": without_token(url), "replaced": old and old.url})
        return ExitCode.OK
    output.say(f"Segmind calls {without_token(url)} when a fine-tune of '{account}' changes.")
    output.say(f"Try it: {_command('test', account)}")
    if old is not None and old.consequence:
        output.note(f"Segmind no longer calls {old.url}{old.consequence}.{old.instead}")
    return ExitCode.OK


def remove(account: str, *, yes: bool, as_json: bool) -> ExitCode:
    """Have Segmind call the account's webhook for fine-tunes no more, whoever registered it.

    Raises:
        CliError: there is none, or ``yes`` does not confirm it.
    """
    with _open(account) as session:
        current = _required(session)
        old = _Ended.of(session, current)
        if not yes:
            message = (
                f"Segmind calls {old.url} when a fine-tune of '{account}' changes. To end that{old.consequence}: "
                f"{_command('remove', account, '--yes')}"
            )
            raise CliError(message, ExitCode.USAGE, "not_confirmed", webhook_id=current.webhook_id, url=old.url)
        session.call_webhooks(lambda: session.hooks.deactivate(current.webhook_id))
    if as_json:
        output.emit({"account": account, "webhook_id": current.webhook_id, "removed": old.url})
        return ExitCode.OK
    output.say(f"Segmind no longer calls {old.url}{old.consequence}. Jobs go on, by sweeps alone.")
    return ExitCode.OK


def try_out(account: str, *, as_json: bool) -> ExitCode:
    """Call the account's webhook from here as Segmind does, and show Segmind's own latest deliveries.

    Raises:
        CliError: there is none, or it is not a gateway's with this secret.
    """
    with _open(account) as session:
        current = _required(session, f" See: {output.program()} webhooks register --help")
        if not is_ours(session, current.webhook_url):
            message = "The webhook is not one that `finetune webhooks register` made with this FINETUNE_HOOK_SECRET."
            raise CliError(message, ExitCode.CONFLICT, "not_ours", webhook_id=current.webhook_id)
        status, said = knock(current.webhook_url or "", session.settings)
        log = session.call_webhooks(lambda: session.hooks.deliveries(current.webhook_id))[:SHOWN_DELIVERIES]
    url = without_token(current.webhook_url or "")
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


def _path(settings: Settings, account: str) -> str:
    """Return the path of the account's hook at the gateway.

    Raises:
        CliError: there is no secret to make it from.
    """
    secret = settings.finetune_hook_secret
    if secret is None:
        message = (
            "FINETUNE_HOOK_SECRET: missing; set the same one here and at the gateway. Create it: openssl rand -hex 32"
        )
        raise CliError(message, ExitCode.SETTINGS, "settings")
    return hook_path(secret, account)


def _current(session: Session) -> "Webhook | None":
    """Return the account's webhook for fine-tunes."""
    return next((each for each in session.call_webhooks(session.hooks.webhooks) if each.for_finetunes), None)


def _required(session: Session, advice: str = "") -> "Webhook":
    """Return the account's webhook for fine-tunes. ``advice`` is added where there is none.

    Raises:
        CliError: it has none.
    """
    current = _current(session)
    if current is None:
        message = f"The account '{session.account}' has no webhook.{advice}"
        raise CliError(message, ExitCode.NOT_FOUND, "no_webhook")
    return current


def _command(name: str, account: str, *arguments: str) -> str:
    """Return a command of ``finetune webhooks`` as a person types it for the account."""
    whose = [] if account == DEFAULT_ACCOUNT else ["--account", account]
    return " ".join([output.program(), "webhooks", name, *arguments, *whose])


def _full_url(base_url: str, settings: Settings, account: str) -> str:
    wrong = usage_error(f"{base_url}: should be just an address, like https://finetune.example.com")
    try:
        parts = urlsplit(base_url)
        _ = parts.port
    except ValueError:
        raise wrong from None
    sandbox = is_loopback(urlsplit(settings.webhook_api).hostname) and is_loopback(parts.hostname)
    if parts.scheme != "https" and not (parts.scheme == "http" and sandbox):
        raise usage_error(f"{base_url}: should be the gateway's https:// address, as Segmind reaches it.")
    if not parts.hostname or parts.query or parts.fragment or parts.username is not None:
        raise wrong
    return base_url.rstrip("/") + _path(settings, account)


def is_ours(session: Session, url: str | None) -> bool:
    """Tell whether a webhook's URL has the path of this account's hook, by the secret of these settings."""
    settings = session.settings
    return settings.finetune_hook_secret is not None and (url or "").endswith(_path(settings, session.account))


def shown_url(webhook: "Webhook") -> str:
    """Return a webhook's URL without its token, fit for a terminal."""
    return words.printable(without_token(webhook.webhook_url or "an address that it does not show"))


def _shown(session: Session, webhook: "Webhook") -> dict[str, Any]:
    return {
        "webhook_id": webhook.webhook_id,
        "status": webhook.status or "unknown",
        "event_types": webhook.event_types,
        "url": without_token(webhook.webhook_url or ""),
        "ours": is_ours(session, webhook.webhook_url),
    }


def without_token(url: str) -> str:
    """Return a URL without the token that makes its path unguessable."""
    head, found, rest = url.partition("/hooks/")
    return f"{head}/hooks/{rest.partition('/')[0]}/..." if found else url
