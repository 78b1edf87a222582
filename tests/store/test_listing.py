"""Pages of jobs: every job once, newest first, also while others come and many share a millisecond."""

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_queue.contract import JobState, new_job_id
from finetune_queue.store import Change, CursorError, JobPages, JobStore, keys, listing
from support.samples import sample_request


@pytest.fixture
def pages(client: redis.Redis, jobs: JobStore) -> JobPages:
    return JobPages(client, jobs)


def add(jobs: JobStore, **request: object) -> str:
    return jobs.register(new_job_id(), sample_request(**request), delay=60)[0].id


def read_all(pages: JobPages, limit: int, **filters: object) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = pages.page(limit=limit, cursor=cursor, **filters)  # type: ignore[arg-type]
        assert len(page.jobs) <= limit
        found += [job.id for job in page.jobs]
        if page.cursor is None:
            return found
        cursor = page.cursor


def test_pages_show_every_job_once_newest_first(pages: JobPages, jobs: JobStore) -> None:
    ids = [add(jobs) for _ in range(7)]
    assert read_all(pages, 3) == ids[::-1]


def test_jobs_that_come_meanwhile_do_not_shift_the_pages(pages: JobPages, jobs: JobStore) -> None:
    ids = [add(jobs) for _ in range(4)]
    first = pages.page(limit=2)
    add(jobs)
    assert [job.id for job in pages.page(limit=2, cursor=first.cursor).jobs] == ids[1::-1]


@pytest.mark.usefixtures("redis_url")
def test_jobs_of_one_millisecond_are_told_apart(pages: JobPages, client: redis.Redis, jobs: JobStore) -> None:
    ids = sorted(add(jobs) for _ in range(listing._BATCH + 5))
    client.zadd(keys.jobs(), dict.fromkeys(ids, 7))
    assert read_all(pages, 50) == ids[::-1]


def test_filters(pages: JobPages, jobs: JobStore) -> None:
    add(jobs)
    mine = add(jobs, account="team-a", labels={"env": "test", "run": "1"})
    other = add(jobs, account="team-a", labels={"env": "live"})
    ended = jobs.get(add(jobs, account="team-a"))
    jobs.transition(ended, Change(), to=JobState.CANCELLED)
    assert read_all(pages, 5, account="team-a", state=JobState.ACCEPTED) == [other, mine]
    assert read_all(pages, 5, labels={"env": "test"}) == [mine]
    assert read_all(pages, 5, state=JobState.CANCELLED) == [ended.id]
    assert read_all(pages, 5, labels={"env": "nowhere"}) == []


def test_a_page_looks_through_a_bounded_number_of_jobs(
    pages: JobPages, jobs: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "LONGEST_SCAN", 3)
    wanted = add(jobs, labels={"rare": "yes"})
    for _ in range(4):
        add(jobs)
    page = pages.page(limit=1, labels={"rare": "yes"})
    assert (page.jobs, page.cursor is None) == ([], False)
    assert [job.id for job in pages.page(limit=1, labels={"rare": "yes"}, cursor=page.cursor).jobs] == [wanted]


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text() | st.from_regex(r"[1-9][0-9]{0,19}\.[0-9a-f-]{30,40}", fullmatch=True))
def test_a_text_is_a_place_that_can_be_written_again_or_no_cursor(pages: JobPages, text: str) -> None:
    try:
        score, job_id = listing._parse(text)
    except CursorError:
        with pytest.raises(CursorError):
            pages.page(cursor=text)
    else:
        assert f"{score}.{job_id}" == text
        assert pages.page(cursor=text).jobs == []
