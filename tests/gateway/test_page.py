"""The page in a real browser: what it shows, that it is live, and that it can be used without a mouse or eyes."""

import re
import shutil
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import redis
from playwright.sync_api import Browser, Page, expect, sync_playwright

import finetune_queue.gateway
from finetune_queue.contract import EventType, JobState, WaitReason, new_job_id, parse_sink
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.store import AccountLimits, Accounts, Attempt, Change, Hold, Outbox, SinkLines, keys
from finetune_queue.store.clock import server_ms
from finetune_queue.store.listing import LONGEST_SCAN
from gateway.serving import TOKEN, MakeSettings, Start, run_gateway
from support.cli import Worker

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CSS = Path(finetune_queue.gateway.__file__).parent / "page" / "app.css"
SOON = 8000

REPORT = {
    "ok": True,
    "images": 12,
    "captions": 11,
    "bytes": 3_400_000,
    "findings": [
        {
            "code": "caption_missing",
            "severity": "warning",
            "file": "photo07.jpg",
            "message": "has no caption",
            "fix": "Write a caption for each image, or for none.",
        }
    ],
}


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


class Seen:
    """What the browser complained about, and where it went."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.hosts: set[str] = set()


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


def let_pass(page: Page, seconds: int) -> None:
    """Let time go by for the page, at once. It looks again every 5 s, at a job every 2 s, whether or not it is told."""
    page.clock.run_for(seconds * 1000)


def column(page: Page, state: str) -> Any:
    return page.get_by_role("region", name=re.compile(rf"^{state} "))


def test_the_board_shows_where_the_jobs_are_and_moves_with_them(board: Page, worker: Worker, seen: Seen) -> None:
    expect(column(board, "accepted")).to_contain_text("none")
    job = worker.accept(name="my-face")
    other = worker.accept(name="my-dog")
    expect(board.get_by_role("region", name="accepted 2")).to_contain_text("oldest: ")
    link = board.get_by_role("link", name="my-face")
    expect(link).to_be_visible()
    worker.bring(job, JobState.TRAINING)
    expect(board.get_by_role("region", name="training 1").get_by_role("link", name="my-face")).to_contain_text(
        "REQUESTED"
    )
    expect(board.get_by_role("region", name="accepted 1").get_by_role("link")).to_contain_text("my-dog")
    worker.fail(worker.bring(other, JobState.DOWNLOADING), "The disk is full.")
    expect(board.get_by_role("region", name="failed 1").get_by_role("link", name="my-dog")).to_contain_text(
        "The disk is full."
    )
    expect(board.get_by_role("status")).to_have_text("my-dog: failed")
    assert seen.errors == []
    assert len(seen.hosts) == 1, "everything comes from the gateway"


def test_what_has_the_focus_keeps_it_while_the_board_moves(board: Page, worker: Worker) -> None:
    job = worker.accept(name="my-face")
    board.get_by_role("link", name="my-face").focus()
    for number in range(3):
        worker.accept(name=f"other-{number}")
    expect(board.get_by_role("region", name="accepted 4")).to_be_visible()
    assert board.evaluate("document.activeElement.getAttribute('href')") == f"#job={job.id}"
    worker.bring(job, JobState.TRAINING)
    link = board.get_by_role("region", name="training 1").get_by_role("link", name="my-face")
    expect(link).to_be_focused()


def test_an_account_s_budget_and_its_line(board: Page, worker: Worker, client: redis.Redis) -> None:
    worker.announce(calls=5)
    client.zadd(keys.slots("default"), dict.fromkeys("abc", 9e15))
    for score, name in enumerate(["first", "second"]):
        worker.park(worker.bring(worker.accept(name=name), JobState.SUBMITTING), WaitReason.API_SLOT, score=score)
    let_pass(board, 5)
    account = board.get_by_role("region", name="default")
    expect(account).to_contain_text("3 of 5 calls in 60 s used")
    expect(account.get_by_role("meter", name="3 of 5 calls")).to_be_visible()
    expect(account).to_contain_text("Waiting for a call: 2")
    line = account.get_by_role("list", name="Who is next in default").get_by_role("listitem")
    expect(line).to_have_text(["first to submit", "second to submit"])
    expect(column(board, "submitting")).to_contain_text("waits for an API call")
    Accounts(client).stop_submits("default", stopped=True)
    let_pass(board, 5)
    expect(account).to_contain_text("Paid submits are stopped")
    expect(account).not_to_contain_text("No submits are left")
    worker.accounts.configure("default", AccountLimits(calls=5, window=60.0, max_submits_per_day=0))
    let_pass(board, 5)
    expect(account).to_contain_text("No submits are left for today (UTC).")


def test_a_sink_that_does_not_take_its_events_is_named(board: Page, worker: Worker, client: redis.Redis) -> None:
    outbox, url = Outbox(client), "https://sink.example/hook"
    job, sink = worker.accept(name="my-face", reply_to=[url]), parse_sink(url)
    outbox.line_up(job.id, [sink.line(job.id)])
    [hold], _ = outbox.take_lines(1, 60)
    why = f"{sink.shown} answered with status 500"
    attempt = Attempt(f"{job.id}-1", sink.shown, sink.id, "failed", 1, 5, 500, why)
    outbox.attempted(hold, job.id, attempt, before=0, after=0, lease=60)
    outbox.leave(hold, outbox.subject(job.id), [sink], delay=100)
    outbox.settle(hold)
    let_pass(board, 5)
    board.get_by_role("link", name="A job whose event it refuses").click()
    expect(board.get_by_role("heading", name="my-face")).to_be_visible()
    board.get_by_role("link", name="Back to the board").click()
    expect(board.get_by_text(f"No events have reached {sink.shown} for")).to_contain_text(why)

    outbox.settle(Hold(sink.line(job.id), SinkLines(client).all()[0].next_ms), down_for=100, reason="cannot be reached")
    let_pass(board, 5)
    expect(board.get_by_text("No events have reached https://sink.example for")).to_contain_text("cannot be reached")


def test_a_job_s_timeline_with_its_progress_dataset_and_error(board: Page, worker: Worker) -> None:
    job = worker.bring(worker.accept(name="my-face", labels={"team": "a"}), JobState.UPLOADING)
    job = worker.note(job, dataset_report=REPORT)
    job = worker.move(job, JobState.SUBMITTING)
    board.get_by_role("link", name="my-face").click()
    title = board.get_by_role("heading", name="my-face submitting")
    expect(title).to_be_focused()
    steps = board.get_by_role("region", name="Timeline").get_by_role("listitem")
    expect(steps.nth(2)).to_contain_text("dataset: 12 images, 11 captions, 3.4 MB")
    expect(steps.last).to_contain_text("succeeded (to come)")
    dataset = board.get_by_role("region", name="Dataset")
    expect(dataset).to_contain_text("warning: photo07.jpg: has no caption Write a caption for each image, or for none.")
    expect(board.get_by_role("region", name="Facts")).to_contain_text("team=a")

    worker.note(job, waiting_for=WaitReason.PROVIDER)
    let_pass(board, 2)
    expect(steps.nth(2)).to_contain_text("its training is looked for at Segmind")
    job = worker.bring(worker.store.get(job.id), JobState.TRAINING)
    expect(board.get_by_role("heading", name="my-face training")).to_be_visible()
    expect(steps.nth(3)).to_contain_text("It waits for Segmind")
    job = worker.bring(job, JobState.DOWNLOADING)
    job = worker.progress(job, 3_000_000, 12_000_000)
    let_pass(board, 2)
    expect(steps.nth(4).get_by_role("progressbar", name="3.0 MB of 12.0 MB")).to_be_visible()
    worker.fail(job, "The disk is full.")
    expect(board.get_by_text("It failed: The disk is full.")).to_be_visible()
    expect(board.get_by_text("Free some space.")).to_be_visible()
    board.get_by_role("button", name="Retry").click()
    expect(board.get_by_role("heading", name="my-face downloading")).to_be_focused()  # the button is gone


def test_a_cancel_is_confirmed_first(board: Page, worker: Worker) -> None:
    job = worker.bring(worker.accept(name="my-face"), JobState.TRAINING)
    board.get_by_label("Job", exact=True).fill(f" {job.id.upper()} ")
    board.keyboard.press("Enter")
    for answer, state in (("No", "training"), ("Cancel the job", "cancelled")):
        board.get_by_role("button", name="Cancel", exact=True).click()
        dialog = board.get_by_role("dialog", name="Cancel my-face?")
        expect(dialog).to_contain_text("is paid")
        dialog.get_by_role("button", name=answer).click()
        expect(board.get_by_role("heading", name=f"my-face {state}")).to_be_visible()
    expect(board.get_by_role("button", name="Cancel", exact=True)).to_have_count(0)


def test_it_can_be_used_with_the_keyboard_alone(board: Page, worker: Worker) -> None:
    worker.accept(name="my-face")
    expect(board.get_by_role("link", name="my-face")).to_be_visible()
    board.keyboard.press("Tab")
    expect(board.get_by_role("link", name="Skip to the content")).to_be_focused()
    board.keyboard.press("Enter")
    for name in ("1 accepted", "my-face"):
        board.keyboard.press("Tab")
        expect(board.get_by_role("link", name=name)).to_be_focused()
    board.keyboard.press("Enter")
    expect(board.get_by_role("heading", name="my-face accepted")).to_be_focused()
    board.keyboard.press("Escape")
    expect(board.get_by_role("heading", name="Jobs")).to_be_visible()


def test_every_part_has_a_name_and_a_place_in_the_outline(board: Page, worker: Worker) -> None:
    worker.announce()
    worker.accept(name="my-face")
    expect(board.get_by_role("region", name="accepted 1")).to_be_visible()
    levels = [int(each.evaluate("node => node.tagName[1]")) for each in board.get_by_role("heading").all()]
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    for role in ("link", "button", "textbox", "meter", "region"):
        for each in board.get_by_role(role).all():
            named = "node.ariaLabel || node.ariaLabelledByElements?.length || node.labels?.length"
            assert each.evaluate(f"node => {named} || node.textContent.trim()"), each.evaluate("node => node.outerHTML")
    assert board.evaluate("document.documentElement.lang") == "en"
    assert board.evaluate("new Set([...document.querySelectorAll('[id]')].map(n => n.id)).size") == board.evaluate(
        "document.querySelectorAll('[id]').length"
    )


def test_names_are_texts(board: Page, worker: Worker, seen: Seen) -> None:
    name = "<img src=x onerror=document.title='owned'><b>bold</b>"
    worker.fail(worker.bring(worker.accept(name=name), JobState.DOWNLOADING), f"{name} failed")
    link = board.get_by_role("region", name="failed 1").get_by_role("link")
    expect(link).to_contain_text(name)
    link.click()
    expect(board.locator("#title")).to_contain_text(name)
    assert board.title() == f"{name} (failed) - finetune-queue"
    assert seen.errors == []


def test_a_state_with_many_jobs_has_a_list_of_its_own(board: Page, worker: Worker) -> None:
    for number in range(60):
        worker.accept(name=f"job-{number:02}")
    board.get_by_role("region", name="accepted 60").get_by_role("link", name="all 60").click()
    expect(board.get_by_role("heading", name="Jobs: accepted")).to_be_focused()
    expect(board.get_by_role("row")).to_have_count(51)
    board.get_by_role("button", name="More").click()
    expect(board.get_by_role("row")).to_have_count(61)
    board.get_by_role("link", name="job-00").click()
    expect(board.get_by_role("heading", name="job-00 accepted")).to_be_visible()


def test_jobs_are_found_by_a_label(board: Page, worker: Worker) -> None:
    worker.accept(name="my-face", labels={"order": "A-1"})
    worker.accept(name="my-dog", labels={"order": "A-2"})
    for label, heading in (("order=A-1", "Jobs: order=A-1"), ("a label=x", "That cannot be looked for")):
        board.get_by_label("Job", exact=True).fill(label)
        board.keyboard.press("Enter")
        expect(board.get_by_role("heading", name=heading)).to_be_focused()
        expect(board.get_by_role("row")).to_have_count(2 if label == "order=A-1" else 0)
    expect(board.locator("#link-text")).to_have_text("live")


def add_newer(client: redis.Redis, count: int) -> None:
    """Let there be newer jobs, which a page looks through; that their records are gone already is no matter."""
    at = server_ms(client)
    client.zadd(keys.jobs(), {new_job_id(): at + number for number in range(count)})


def test_a_job_with_a_label_is_found_behind_thousands_of_newer_ones(
    board: Page, worker: Worker, client: redis.Redis
) -> None:
    worker.accept(name="my-face", labels={"order": "A-1"})
    add_newer(client, 2 * LONGEST_SCAN + 1)
    board.get_by_label("Job", exact=True).fill("order=A-1")
    board.keyboard.press("Enter")
    expect(board.get_by_role("link", name="my-face")).to_be_visible()
    expect(board.get_by_text("There are none.")).to_have_count(0)


def test_a_search_that_takes_long_says_how_far_it_is(board: Page, worker: Worker, client: redis.Redis) -> None:
    worker.accept(name="my-face", labels={"order": "A-1"})
    add_newer(client, 10 * LONGEST_SCAN)
    for label, found in (("order=A-1", 2), ("order=A-2", 1)):
        board.get_by_label("Job", exact=True).fill(label)
        board.keyboard.press("Enter")
        expect(board.get_by_text("None among the newest. More looks further back.")).to_be_visible()
        board.get_by_role("button", name="More").click()
        expect(board.get_by_role("row")).to_have_count(found)
        expect(board.get_by_text("There are none.")).to_have_count(2 - found)
        expect(board.get_by_role("button", name="More")).to_have_count(0)


def test_the_model_of_an_ended_job_is_made_public(board: Page, worker: Worker, client: redis.Redis) -> None:
    job = worker.bring(worker.accept(name="my-face"), JobState.SUCCEEDED)
    board.get_by_role("link", name="my-face").click()
    model = board.get_by_role("region", name="Facts").locator("dt:text-is('model') + dd")
    expect(model).to_have_text("private")
    board.get_by_role("button", name="Make the model public").click()
    dialog = board.get_by_role("dialog", name="Make the model of my-face public?")
    dialog.get_by_role("button", name="Make it public").click()
    expect(model).to_have_text("to be made public")
    steps = board.get_by_role("region", name="Timeline").get_by_role("listitem")
    expect(steps.last).to_contain_text("the model is to be made public")

    job = worker.store.get(job.id)
    held = worker.store.transition(job, Change(delay=60), owner="a-worker")
    board.get_by_role("button", name="Make the model private").click()
    said = board.get_by_role("status").filter(has_text="on its way to Segmind")
    expect(said).to_be_visible()
    assert held.access is not None
    worker.store.transition(held, Change(), event=EventType.ACCESS, access=held.access.granted(), owner="")
    expect(steps.last).to_contain_text("the model is public")
    expect(model).to_have_text("public")


def test_a_job_that_is_not_there(board: Page, open_url: str) -> None:
    board.goto(f"{open_url}/#job=nonsense")
    expect(board.get_by_role("heading", name="No such job")).to_be_visible()


def test_a_token_is_asked_for_and_kept_for_the_tab_alone(page: Page, url: str, worker: Worker) -> None:
    worker.accept(name="my-face")
    page.goto(url)
    dialog = page.get_by_role("dialog", name="A token is needed")
    for token in ("wrong", TOKEN):
        dialog.get_by_label("Token").fill(token)
        dialog.get_by_role("button").click()
    expect(page.get_by_role("link", name="my-face")).to_be_visible()
    expect(page.locator("#link-text")).to_have_text("live")
    page.reload()
    expect(page.get_by_role("link", name="my-face")).to_be_visible()
    assert TOKEN not in page.url
    assert page.evaluate("JSON.stringify(localStorage) + document.cookie") == "{}"


def test_it_says_when_the_queue_is_out_of_reach_and_comes_back(
    page: Page, make_settings: MakeSettings, start: Start, tmp_path: Path
) -> None:
    with ValkeyServer(tmp_path / "own") as valkey, redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        page.clock.install()
        page.goto(start(make_settings(finetune_redis_url=valkey.url, finetune_gateway_tokens={})))
        Worker(client).accept(name="old-face")
        expect(page.get_by_role("link", name="old-face")).to_be_visible(timeout=15000)
        valkey.stop()
        let_pass(page, 5)
        expect(page.locator("#link-text")).to_contain_text("The queue's Redis is out of reach", timeout=15000)
        expect(page.locator("main")).to_have_attribute("data-old", "")  # it is still there, and looks old
        valkey.start()
        Worker(client).accept(name="my-face")
        let_pass(page, 5)
        expect(page.get_by_role("link", name="my-face")).to_be_visible(timeout=15000)
        expect(page.locator("#link-text")).to_have_text("live", timeout=15000)
        expect(page.locator("main")).not_to_have_attribute("data-old", "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_system_s_colours(page: Page, open_url: str, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(open_url)
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", back)[:3])) / 3
    assert (brightness > 128) == (scheme == "light")


def test_a_narrow_screen_needs_no_sideways_scrolling(page: Page, open_url: str, worker: Worker) -> None:
    worker.announce()
    job = worker.bring(worker.accept(name="a-long-name-" * 8), JobState.TRAINING)
    page.set_viewport_size({"width": 360, "height": 740})
    for place in ("", f"#job={job.id}"):
        page.goto(f"{open_url}/{place}")
        expect(page.get_by_text("a-long-name").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def _contrast(first: str, second: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    bright, dim = sorted((light(first), light(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_every_colour_of_text_can_be_read_in_both_themes() -> None:
    blocks = re.findall(r":root \{(.*?)\}", CSS.read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        for text, back in product(("text", "soft", "blue", "green", "red", "amber", "violet"), ("back", "card")):
            assert _contrast(colours[text], colours[back]) >= 4.5, (text, back)  # WCAG 2.2, AA
