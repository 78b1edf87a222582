"""The list of jobs over HTTP: filters, pages, and queries that are refused."""

import httpx
import pytest

from finetune_queue.sdk import FineTuneQueue
from support.http_api import problem, submit


def test_list_filters_and_pages(http: httpx.Client, queue: FineTuneQueue) -> None:
    ids = [submit(http, account="team-a", labels={"n": str(number)})["job_id"] for number in range(5)]
    submit(http)
    queue.cancel(ids[0])
    page = http.get("/v1/jobs", params={"account": "team-a", "limit": 2}).json()
    assert [job["job_id"] for job in page["jobs"]] == ids[:2:-1]
    seen = [job["job_id"] for job in page["jobs"]]
    while page.get("next"):
        page = http.get("/v1/jobs", params={"account": "team-a", "limit": 2, "cursor": page["next"]}).json()
        seen += [job["job_id"] for job in page["jobs"]]
    assert seen == ids[::-1]
    assert [job["job_id"] for job in http.get("/v1/jobs?state=cancelled").json()["jobs"]] == ids[:1]
    assert [job["job_id"] for job in http.get("/v1/jobs?label=n%3D3").json()["jobs"]] == ids[3:4]
    assert http.get("/v1/jobs?label=n%3D3&label=n%3D4").json()["jobs"] == []


@pytest.mark.parametrize(
    "query", ["state=done", "limit=0", "limit=201", "cursor=abc", "label=x", "account=a%20b", "stat=failed", "limit=x"]
)
def test_a_query_with_a_typo_is_refused(http: httpx.Client, query: str) -> None:
    body = problem(http.get(f"/v1/jobs?{query}"), 422, "invalid-request")
    assert body["errors"][0]["where"].split(".")[0] == query.partition("=")[0]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs?state=failed&state=cancelled",
        "/v1/jobs?limit=1&label=a%3Db&label=c%3Dd&limit=1",
        "/v1/jobs/01a213e8-2f10-7d71-8fd6-0e5b4c7a9d21/events?after=1&after=2",
        "/v1/events?limit=1&limit=2",
    ],
)
def test_of_a_repeated_parameter_none_is_taken(http: httpx.Client, path: str) -> None:
    body = problem(http.get(path), 422, "invalid-request")
    name = path.partition("?")[2].partition("=")[0]
    assert body["errors"] == [{"where": name, "detail": "is given more than once"}]
