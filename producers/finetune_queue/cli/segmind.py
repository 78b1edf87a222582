"""One account at Segmind from the command line. Each call takes a slot of the account's budget, as a worker's does."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

from finetune_queue.cli import output, words
from finetune_queue.cli.output import CliError, ExitCode, usage_error
from finetune_queue.contract import WaitReason
from finetune_queue.settings import Settings
from finetune_queue.store import (
    AccountLimits,
    Accounts,
    AccountStatus,
    Budget,
    NoSlot,
    RedisError,
    Slot,
    connect,
)

if TYPE_CHECKING:
    from finetune_worker.segmind.call import EndedCall

T = TypeVar("T")

HOLDER = "finetune"
"""The name of a call slot's holder, in place of a job's id."""

GRACE = 5.0
"""Seconds to wait for a slot beyond the account's window; within a window every slot that no call uses comes free."""

ASK_AGAIN = 0.5
"""Seconds between two tries for a slot: a command cannot stand in a waiting room, where only jobs have places."""


class Session:
    """One account: the clients of the API and of the webhooks, used within the account's budget.

    ``skew`` is by how many seconds, at least, this machine's clock is ahead of Segmind's, measured at the latest call
    of ``api``; None if its answer had no date.
    """

    def __init__(self, settings: Settings, account: str, budget: Budget, accounts: Accounts) -> None:
        from finetune_worker.segmind.client import SegmindClient
        from finetune_worker.segmind.webhooks import WebhookClient

        self.settings = settings
        self.account = account
        self.skew: float | None = None
        self._budget = budget
        self._accounts = accounts
        key = settings.accounts[account].api_key
        times = (settings.segmind_connect_timeout, settings.segmind_read_timeout, settings.segmind_call_timeout)
        self.api = SegmindClient(
            settings.segmind_base_url,
            key,
            connect_timeout=times[0],
            read_timeout=times[1],
            call_timeout=times[2],
            on_call=self._notice,
        )
        self.hooks = WebhookClient(
            settings.webhook_api, key, connect_timeout=times[0], read_timeout=times[1], call_timeout=times[2]
        )

    def call(self, function: Callable[[], T]) -> T:
        """Make one call to Segmind's API in a slot of the account, waiting for one as long as a window lasts.

        Raises:
            CliError: the account is paused, there was no slot, or the call failed, with the code of its error.
        """
        return self._call(function, self._budget.end)

    def call_webhooks(self, function: Callable[[], T]) -> T:
        """Make one call to the webhook API in a slot of the account. It is another host, so its success does not show
        that the API is well.

        Raises:
            CliError: see :meth:`call`.
        """
        return self._call(function, self._budget.end_without_news)

    def _call(self, function: Callable[[], T], end: Callable[[Slot], None]) -> T:
        from finetune_worker.segmind.errors import RateLimited, SegmindError

        slot = self._slot()
        while slot.stale:  # this command was stopped meanwhile, as by Ctrl-Z
            self._budget.end_without_news(slot)
            slot = self._slot()
        try:
            result = function()
        except RateLimited as error:
            with _left_to_its_time_out():
                self._budget.pause(slot, error.detail, error.retry_after, code=error.code)
            raise CliError(str(error), ExitCode.UNAVAILABLE, error.code) from None
        except SegmindError as error:
            # The account is not paused: a wrong key on this machine, or trouble at the webhook API, does not mean that
            # the workers' calls fail.
            with _left_to_its_time_out():
                self._budget.end_without_news(slot, under_way=error.under_way)
            raise CliError(str(error), ExitCode.FAILED, error.code) from None
        except KeyboardInterrupt:
            with _left_to_its_time_out():
                self._budget.end_without_news(slot, under_way=True)
            raise
        with _left_to_its_time_out():
            end(slot)
        return result

    def _notice(self, call: "EndedCall") -> None:
        self.skew = call.skew

    @property
    def status(self) -> AccountStatus:
        """How the account stands now."""
        return self._accounts.status(self.account)

    def _slot(self) -> Slot:
        found = self._take()
        if isinstance(found, Slot):
            return found
        patience = self.settings.accounts[self.account].rate_limit.seconds + GRACE
        said = f"Waiting for a free call of the account '{self.account}', {patience:g} s at most ..."
        errors = output.errors()
        end = time.monotonic() + patience
        with errors.status(said) if errors.is_terminal else nullcontext():
            while isinstance(found, NoSlot):
                if time.monotonic() > end:
                    message = f"The account '{self.account}' had no call free in {patience:g} s ({found.reason})."
                    raise CliError(message, ExitCode.UNAVAILABLE, "no_call_free")
                time.sleep(ASK_AGAIN)
                found = self._take()
        return found

    def _take(self) -> Slot | NoSlot:
        found = self._budget.take(self.account, HOLDER, 0.0)
        if isinstance(found, NoSlot) and found.reason is WaitReason.PAUSED:
            status = self.status
            left = f"for {words.duration(status.paused_for)}" if status.paused_for else words.TESTED
            message = f"The account '{self.account}' is paused {left}: {status.pause_reason}"
            raise CliError(message, ExitCode.UNAVAILABLE, "account_paused")
        return found


@contextmanager
def _left_to_its_time_out() -> Iterator[None]:
    """Keep the call's result if Redis goes away before its slot is ended: the slot becomes free by its time-out."""
    try:
        yield
    except RedisError as error:
        output.note(f"The call was made, but Redis does not know that it has ended ({error}): its slot ends by itself.")


def known_account(settings: Settings, name: str) -> None:
    """Check that the settings have an account.

    Raises:
        CliError: they do not.
    """
    if name not in settings.accounts:
        raise usage_error(f"--account {name}: no such account (known: {', '.join(settings.accounts)}).")


@contextmanager
def open_session(settings: Settings, account: str) -> Iterator[Session]:
    """Open one account's clients and its budget.

    Raises:
        CliError: there is no such account, the worker's part is not installed, or Redis is out of reach, also later.
    """
    known_account(settings, account)
    with connect(settings.finetune_redis_url) as redis:
        budget = Budget.of_calls(redis, settings)
        accounts = Accounts(redis)
        try:
            session = Session(settings, account, budget, accounts)
        except ImportError as error:
            raise output.not_installed("This", error, "worker") from None
        with session.api, session.hooks:
            try:
                _announce(accounts, account, settings)
                yield session
            except RedisError as error:
                message = f"No call is made without the account's budget, and Redis, which has it, is away ({error})."
                raise CliError(message, ExitCode.UNAVAILABLE, "queue_unavailable") from None


def _announce(accounts: Accounts, name: str, settings: Settings) -> None:
    """Make the account's limits known where no worker has been yet."""
    if name not in accounts.names():
        accounts.configure(name, AccountLimits.of(settings.accounts[name], settings.finetune_training_limit))


def knock(url: str, settings: Settings) -> tuple[int | None, str]:
    """Send a webhook a sample as Segmind would; returns the status, if any came, and what to say of it."""
    import requests

    from finetune_worker.wire.session import open_session as open_http

    body = {"event_type": "FINETUNE", "status": "TEST", "sent_by": "finetune webhooks test"}
    with open_http() as client:
        try:
            timeouts = (settings.segmind_connect_timeout, settings.segmind_read_timeout)
            status = client.post(url, json=body, timeout=timeouts).status_code
        except requests.RequestException as error:
            return None, f"nothing ({type(error).__name__}); Segmind may still reach it"
    if status == 202:
        return status, "202, accepted as a hint"
    if status == 404:
        return status, "404: another gateway, or one with another FINETUNE_HOOK_SECRET"
    return status, f"{status}, which is not a gateway's answer"
