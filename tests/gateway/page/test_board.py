"""The board of all jobs in a real browser: what it shows, that it is live, and how it looks."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import redis
from playwright.sync_api import Page, expect

import finetune_queue.gateway
from finetune_queue.contract import JobState, WaitReason, new_job_id, parse_sink
from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.store import AccountLimits, Accounts, Attempt, Hold, Outbox, SinkLines, keys
from finetune_queue.store.clock import server_ms
from finetune_queue.store.listing import LONGEST_SCAN
from gateway.serving import TOKEN, MakeSettings, Start
from support.browser import Seen, let_pass
from support.cli import Worker

CSS = Path(finetune_queue.gateway.__file__).parent / "page" / "app.css"


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
    outbox.line_up(job.id, [sink])
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
    expect(board.get_by_text(f"No events have reached {sink.shown} for")).to_contain_text(f"{why}. A job")

    outbox.settle(Hold(sink.line(job.id), SinkLines(client).all()[0].next_ms), down_for=100, reason="cannot be reached")
    let_pass(board, 5)
    expect(board.get_by_text("No events have reached https://sink.example for")).to_contain_text("cannot be reached.")


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
    for label, heading in (("order=A-1", "Jobs: order=A-1"), ("a label=x", "That cannot be searched for")):
        board.get_by_label("Job", exact=True).fill(label)
        board.keyboard.press("Enter")
        expect(board.get_by_role("heading", name=heading)).to_be_focused()
        expect(board.get_by_role("row")).to_have_count(2 if label == "order=A-1" else 0)
    expect(board.locator("#link-text")).to_have_text("live")


def add_newer(client: redis.Redis, count: int) -> None:
    """Let there be newer jobs, which a page looks through; that their records are gone already is no matter."""
    at = server_ms(client)
    client.zadd(keys.jobs(), {new_job_id(): at + number for number in range(count)})


def test_an_address_that_a_person_typed_is_shown_as_far_as_it_can_be(page: Page, open_url: str) -> None:
    for typed, heading in (
        ("label=done=100%", "Jobs: done=100%"),
        ("label=v=1+2&3", "Jobs: v=1+2&3"),
        ("toString=x", "Jobs"),
    ):
        page.goto("about:blank")
        page.goto(f"{open_url}/#{typed}")
        expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
        expect(page.locator("#link-text")).to_have_text("live")


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
