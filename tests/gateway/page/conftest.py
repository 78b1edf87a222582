"""The page in a real browser, on a gateway of its own."""

import shutil
from collections.abc import Iterator

import pytest
import redis
from playwright.sync_api import Browser, Page, expect, sync_playwright

from gateway.serving import MakeSettings, run_gateway
from support.browser import SOON, Seen
from support.cli import Worker

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")  # Playwright has an event loop run in this thread for as long: others need theirs
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (as root: apt-get install chromium)")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
        found = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*flags, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        )
        yield found
        found.close()


@pytest.fixture(autouse=True)
def _nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each look at the queue be a new one: an older one would be shown until the page looks again, 5 s later."""
    monkeypatch.setattr("finetune_queue.gateway.looks.FRESH", 0.0)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="session")
def shared_open_url(make_settings: MakeSettings) -> Iterator[str]:
    with run_gateway(make_settings(finetune_gateway_tokens={})) as url:
        yield url


@pytest.fixture
def open_url(shared_open_url: str, redis_url: str) -> str:
    """A gateway of this machine, which asks for no token, its database emptied."""
    return shared_open_url


@pytest.fixture
def page(browser: Browser, seen: Seen) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    found = context.new_page()
    found.set_default_timeout(SOON)
    expect.set_options(timeout=SOON)
    found.on("console", lambda said: seen.errors.append(said.text) if said.type in {"error", "warning"} else None)
    found.on("pageerror", lambda error: seen.errors.append(str(error)))
    found.on("request", lambda request: seen.hosts.add(request.url.split("/")[2]))
    yield found
    context.close()


@pytest.fixture
def board(page: Page, open_url: str) -> Page:
    """The board, live."""
    page.clock.install()
    page.goto(open_url)
    expect(page.locator("#link-text")).to_have_text("live")
    return page


@pytest.fixture
def worker(client: redis.Redis) -> Worker:
    return Worker(client)
