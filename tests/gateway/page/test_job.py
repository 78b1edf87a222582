"""A job's page: its steps, its cancel, its model, with a mouse or without."""

import time
from itertools import pairwise

import redis
from playwright.sync_api import Page, expect

from finetune_queue.contract import EventType, JobState, WaitReason
from finetune_queue.store import CallClass, Change, LiveWorker, Workers, keys, room_score
from support.browser import Seen, let_pass
from support.cli import Worker

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


def test_a_job_s_timeline_with_its_progress_dataset_and_error(board: Page, worker: Worker, client: redis.Redis) -> None:
    Workers(client).seen(LiveWorker("a:1", "0.1.0"))
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
    expect(steps.nth(2)).to_contain_text("Segmind is searched for its training")
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


def test_a_job_says_that_no_worker_runs_or_why_its_account_is_paused(
    board: Page, worker: Worker, client: redis.Redis
) -> None:
    worker.announce()
    worker.park(worker.accept(name="my-face"), WaitReason.API_SLOT, score=1)
    board.get_by_role("link", name="my-face").first.click()
    steps = board.get_by_role("region", name="Timeline").get_by_role("listitem")
    expect(steps.nth(0)).to_contain_text("It waits: no worker is running; it goes on when one is started.")

    Workers(client).seen(LiveWorker("a:1", "0.1.0"))
    until = str(int((time.time() + 3000) * 1000))
    client.hset(keys.account("default"), mapping={"paused_until": until, "pause_reason": "No such key."})
    board.reload()
    expect(steps.nth(0)).to_contain_text("It waits: the account is paused: No such key, about")
    worker.bring(worker.accept(name="another"), JobState.TRAINING)
    board.get_by_role("link", name="Back to the board").click()
    board.get_by_role("link", name="another").click()
    expect(board.get_by_text("It waits for Segmind; the account is paused: No such key.")).to_be_visible()


def test_a_cancel_is_confirmed_first(board: Page, worker: Worker) -> None:
    job = worker.bring(worker.accept(name="my-face"), JobState.TRAINING)
    board.get_by_label("Job", exact=True).fill(f" {job.id.upper()} ")
    board.keyboard.press("Enter")
    for answer, state in (("No", "training"), ("Cancel the job", "cancelled")):
        board.get_by_role("button", name="Cancel", exact=True).click()
        dialog = board.get_by_role("dialog", name="Cancel my-face?")
        expect(dialog).to_contain_text("is still charged")
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


def test_the_model_of_an_ended_job_is_made_public(board: Page, worker: Worker) -> None:
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

    parked = Change(delay=60, room_score=room_score(CallClass.FINISH, job))
    job = worker.store.transition(worker.store.get(job.id), parked, waiting_for=WaitReason.API_SLOT)
    board.reload()
    expect(model).to_contain_text("to be made public: waits")

    held = worker.store.transition(job, Change(delay=60), owner="a-worker", waiting_for=None)
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
