"""The part of ``finetune doctor`` that tells how the accounts stand, by what workers noted of them in Redis."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from finetune_queue.cli import words
from finetune_queue.cli.findings import Finding
from finetune_queue.settings import Settings
from finetune_queue.store import (
    AccountLimits,
    Accounts,
    AccountStatus,
    Workers,
    key_prints_by_worker,
    limits_by_worker,
    noted_api,
    unserved,
)

if TYPE_CHECKING:
    from redis import Redis

CAP = "SEGMIND_MAX_SUBMITS_PER_DAY, or an account's max_submits_per_day in SEGMIND_ACCOUNTS"
"""The settings that bound what may be spent."""


def account_findings(settings: Settings, client: "Redis") -> Iterator[Finding]:
    """Say of each account how it stands, and what to do if it is not well.

    Raises:
        redis.RedisError: Redis is out of reach.
    """
    accounts = Accounts(client)
    known = [accounts.status(name) for name in accounts.names()]
    if not known:
        yield Finding("accounts", "warn", "no worker has announced an account yet", "Start a worker with an API key.")
    alive = Workers(client).alive()
    shown = {worker.name: words.printable(worker.shown) for worker in alive}
    # The workers' API, if they have said which: a producer's settings may say nothing of it.
    paid = (noted_api(client) or ("sandbox" if settings.segmind_is_loopback else "paid")) == "paid"
    for account in known:
        away = unserved(account.name, alive)
        if away:
            yield _unserved(account.name, accounts.held(account.name))
        else:
            yield _account(account)
        if paid and not away and account.limits.max_submits_per_day is None:
            yield _uncapped(account.name)
        if len(set((said := limits_by_worker(account.name, alive)).values())) > 1:
            yield _differing(account.name, said, shown)
        if len(set((prints := key_prints_by_worker(account.name, alive)).values())) > 1:
            yield _other_keys(account.name, prints, shown)


def _differing(name: str, said: Mapping[str, AccountLimits], shown: Mapping[str, str]) -> Finding:
    each = "; ".join(f"{shown[worker]} has {limits}" for worker, limits in sorted(said.items()))
    action = "The strictest of each applies. Give all workers the same settings that begin with SEGMIND_."
    return Finding(f"limits {name}", "warn", f"the settings of the workers differ: {each}", action)


def _other_keys(name: str, prints: Mapping[str, str], shown: Mapping[str, str]) -> Finding:
    groups = [[worker for worker in sorted(prints) if prints[worker] == each] for each in sorted({*prints.values()})]
    said = "; ".join(", ".join(shown[worker] for worker in group) for group in sorted(groups))
    message = f"the workers have different keys for it, or call different APIs: {said}"
    action = (
        "Fine while a key is changed. Otherwise jobs fail with not_found: two accounts need two names, and two APIs a "
        "Redis each."
    )
    return Finding(f"keys {name}", "warn", message, action)


def _uncapped(name: str) -> Finding:
    message = "nothing bounds how many trainings may be paid for in a day"
    action = f"Give the workers a cap, and restart them: {CAP}."
    return Finding(f"cap {name}", "warn", message, action)


def _unserved(name: str, held: int) -> Finding:
    if not held:
        return Finding(f"account {name}", "ok", "no running worker has its key, and no job needs one")
    what, them = ("job waits", "it") if held == 1 else ("jobs wait", "them")
    message = f"no running worker has the key of account {name}: its {held:,} {what}"
    action = f"Add the account to the workers' SEGMIND_ACCOUNTS again, or cancel {them}."
    return Finding(f"account {name}", "warn", message, action)


def _account(account: AccountStatus) -> Finding:
    limits = account.limits
    parts = [
        f"{account.used} of {limits.calls} calls per {limits.window:g} s in use",
        f"{words.count(account.waiting, 'job')} waiting",
    ]
    cap = "" if limits.max_training is None else f" of {limits.max_training}"
    parts.append(f"{account.in_flight}{cap} {'training' if account.in_flight == 1 and not cap else 'trainings'}")
    cap = "" if limits.max_submits_per_day is None else f" of {limits.max_submits_per_day}"
    parts.append(f"{account.spent_today}{cap} {'submit' if account.spent_today == 1 and not cap else 'submits'} today")
    name, message = f"account {account.name}", ", ".join(parts)
    troubles = [*_submits_held(account), *_pause(account)]
    if not troubles:
        return Finding(name, "ok", message)
    said, actions = zip(*troubles, strict=True)
    return Finding(name, "warn", "; ".join([*said, message]), " ".join(actions))


def _submits_held(account: AccountStatus) -> Iterator[tuple[str, str]]:
    """Say what holds the account's submits back by its settings or by hand, and what to do."""
    if account.stopped:
        yield "submits are stopped", f"Nothing is charged until `finetune account resume {account.name}`."
    if account.at_cap:
        if account.limits.max_submits_per_day == 0:
            why, until = "its workers are set to submit nothing", ""
        else:
            why, until = "no submits are left for today", "the next day (UTC), or for "
        yield why, f"Its jobs wait for {until}workers with a higher cap: {CAP}."


def _pause(account: AccountStatus) -> Iterator[tuple[str, str]]:
    """Say that Segmind does not take the account's calls, or its submits, and what to do."""
    why, resume = words.printable(account.pause_reason), f"`finetune account resume {account.name}`"
    if account.paused_for or account.tested_for:
        left = f"for {words.duration(account.paused_for)}" if account.paused_for else words.TESTED
        action = "It resumes by itself, unless the cause is yours to fix."
        if account.unwell == "rate_limited":
            action = "It resumes by itself. If this recurs, lower its rate_limit, or stop whatever else uses its key."
        yield f"paused {left}: {why}", action
    elif account.probing:
        action = "Fix the cause if it is yours to fix; the next successful call clears this."
        yield f"no call has succeeded since: {why}", action
    elif account.submits_paused_for or account.submits_tested_for:
        left = "while one tests whether Segmind takes them"
        if account.submits_paused_for:
            left = f"for {words.duration(account.submits_paused_for)}"
        action = f"Fix the cause. Submits then resume by themselves, or at once with {resume}."
        yield f"submits are paused {left}: {why}", action
    elif account.submits_refused:
        action = f"Fix the cause. The next submit that Segmind accepts clears this, or {resume}."
        yield f"no submit has succeeded since: {why}", action
