"""The part of ``finetune doctor`` that asks Segmind: two calls for each account, one without a FINETUNE_HOOK_SECRET."""

from collections.abc import Iterator

from finetune_queue.cli import words
from finetune_queue.cli.findings import Finding, clock
from finetune_queue.cli.output import CliError
from finetune_queue.cli.segmind import Session, open_session
from finetune_queue.cli.webhooks import is_ours, shown_url
from finetune_queue.settings import Settings

_WRONG_ADDRESS = ("api", "Correct SEGMIND_BASE_URL, here and on the workers.")
_FAILURES = {
    "api_key_rejected": (
        "key",
        "Correct the account's key in SEGMIND_API_KEY or SEGMIND_ACCOUNTS, here and on the workers.",
    ),
    "forbidden": ("key", "Check in Segmind's console what this key and the account's plan allow."),
    "credits_exhausted": ("credits", "Add credits in Segmind's console; a paused account then resumes by itself."),
    "wrong_address": _WRONG_ADDRESS,
    "redirected": _WRONG_ADDRESS,
    "rate_limited": (
        "limit",
        "Lower SEGMIND_RATE_LIMIT, or stop whatever else uses this key. The account is paused now.",
    ),
    "no_call_free": ("api", "Run it again when fewer jobs wait."),
    "account_paused": ("api", "It resumes by itself, unless the cause is yours to fix. Then run this again."),
    "queue_unavailable": ("api", "Fix Redis first: no call is made without the account's budget."),
    "not_installed": ("api", "Run it where a worker is installed."),
}
"""For the code of a failed call: what it is about, and what to do."""

_OUT_OF_REACH = ("api", "Check whether Segmind is up, and SEGMIND_BASE_URL. Workers wait, and resume by themselves.")


def api_findings(settings: Settings) -> Iterator[Finding]:
    """Ask Segmind about each account of the settings, within its budget."""
    if not settings.accounts:
        action = "Run it where a worker runs, or set SEGMIND_API_KEY or SEGMIND_ACCOUNTS."
        yield Finding("api", "fail", "Segmind was not asked: these settings have no account's key", action)
    skew = None
    for account in settings.accounts:
        try:
            with open_session(settings, account) as session:
                yield from _account(session)
                skew = session.skew if skew is None else skew
        except CliError as error:
            yield _failure(account, error)
    if skew is not None:
        yield clock("segmind clock", skew, "Segmind")


def _account(session: Session) -> Iterator[Finding]:
    account = session.account
    try:
        left = session.call(session.api.credits)
    except CliError as error:
        yield _failure(account, error)
        return
    yield Finding(f"key {account}", "ok", "Segmind accepts it")
    if left.total > 0:
        yield Finding(f"credits {account}", "ok", f"{left.total:,.2f} left")
    else:
        yield Finding(f"credits {account}", "fail", "none are left", _FAILURES["credits_exhausted"][1])
    yield _limit(session)
    yield _webhook(session)


def _failure(account: str, error: CliError) -> Finding:
    about, action = _FAILURES.get(error.code, _OUT_OF_REACH)
    return Finding(f"{about} {account}", "fail", words.printable(error), action)


def _limit(session: Session) -> Finding:
    """Compare the limit that workers keep to with that of these settings. Segmind's API does not tell its own: a 429 is
    its only word, and this call met none."""
    name, ours = f"limit {session.account}", session.settings.accounts[session.account].rate_limit
    kept = session.status.limits
    if (kept.calls, kept.window) != (ours.calls, ours.seconds):
        message = f"workers keep to {kept.calls} calls per {kept.window:g} s, these settings say {ours}"
        return Finding(name, "warn", message, "Set the same everywhere: the workers' strictest setting applies.")
    message = f"{kept.calls} calls per {kept.window:g} s; Segmind does not state its own, but answered no 429 just now"
    return Finding(name, "ok", message)


def _webhook(session: Session) -> Finding:
    account, name = session.account, f"webhook {session.account}"
    if session.settings.finetune_hook_secret is None:
        message = "not checked: this needs the gateway's FINETUNE_HOOK_SECRET, if it has one, here beside the key"
        return Finding(name, "ok", message)
    try:
        registered = session.call_webhooks(session.hooks.webhooks)
    except CliError as error:
        action = "Jobs go on without it, by sweeps alone. See: finetune webhooks list"
        return Finding(name, "warn", f"cannot be read: {words.printable(error)}", action)
    active = next((each for each in registered if each.for_finetunes), None)
    if active is not None:
        url = shown_url(active)
        if is_ours(session, active.webhook_url):
            return Finding(name, "ok", f"Segmind calls {url}; `finetune webhooks test` tries it")
        message = f"Segmind calls {url}, which was not made with this FINETUNE_HOOK_SECRET"
        command = f"finetune webhooks replace https://YOUR-GATEWAY --account {account}"
        return Finding(name, "warn", message, f"Unless another program needs it: {command}")
    ours = next((each for each in registered if is_ours(session, each.webhook_url)), None)
    if ours is None:
        message = "none is registered: only sweeps see that trainings changed, and so later"
    elif (ours.status or "active").lower() != "active":
        message = f"ours is {words.printable(ours.status)}: only sweeps see that trainings changed, and so later"
    else:
        message = f"ours is for {words.printable(', '.join(ours.event_types))} and not for FINETUNE"
    return Finding(name, "warn", message, f"finetune webhooks register https://YOUR-GATEWAY --account {account}")
