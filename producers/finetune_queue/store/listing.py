"""Pages of jobs, newest first, by a cursor that stays right while jobs come, change and go."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import redis

from finetune_queue.contract.job import JobRecord, JobState
from finetune_queue.store import keys
from finetune_queue.store.jobs import JobStore

_BATCH = 200

LONGEST_SCAN = 2000
"""How many jobs one page looks through at most: a filter that matches few must not read the whole store at once."""

CURSOR = r"^([0-9]{1,15})\.([0-9a-f-]{36})$"
"""What a cursor looks like: the score and the id of the last job that its page looked at."""


class CursorError(ValueError):
    """The text is no cursor that a page gave."""


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs, and the cursor of the next page; None on the last page. Any page may be short, or even empty."""

    jobs: list[JobRecord]
    cursor: str | None


class JobPages:
    """Reads pages of jobs."""

    def __init__(self, client: redis.Redis, jobs: JobStore) -> None:
        self._redis = client
        self._jobs = jobs

    def page(
        self,
        *,
        state: JobState | None = None,
        account: str | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobPage:
        """Return up to ``limit`` jobs that match all filters, the newest first: by their creation, or with a ``state``
        by when they entered it.

        Raises:
            CursorError: ``cursor`` is not one that a page gave.
        """
        index = keys.jobs() if state is None else keys.state(state)
        wanted = (labels or {}).items()
        found: list[JobRecord] = []
        seen = 0
        for batch in self._batches(index, None if cursor is None else _parse(cursor)):
            records = {job.id: job for job in self._jobs.get_many([job_id for _, job_id in batch])}
            for score, job_id in batch:
                job = records.get(job_id)
                seen += 1
                if (
                    job is not None
                    and (state is None or job.state is state)
                    and (account is None or job.account == account)
                    and wanted <= job.request.labels.items()
                ):
                    found.append(job)
                if len(found) == limit or seen == LONGEST_SCAN:
                    return JobPage(found, f"{score}.{job_id}")
        return JobPage(found, None)

    def _batches(self, index: str, place: tuple[int, str] | None) -> Iterator[list[tuple[int, str]]]:
        """Yield batches of score and id of the jobs after ``place`` (of all without one), in the index's falling
        order."""
        offset = 0
        while True:
            high = "+inf" if place is None else str(place[0])
            rows = cast(
                "list[tuple[str, float]]",
                self._redis.zrange(
                    index, high, "-inf", desc=True, byscore=True, offset=offset, num=_BATCH, withscores=True
                ),
            )
            after = [(int(score), job_id) for job_id, score in rows if place is None or (int(score), job_id) < place]
            if after:
                yield after
                place, offset = after[-1], 0
            elif len(rows) < _BATCH:
                return
            else:
                offset += _BATCH  # more jobs of one millisecond than a batch


def _parse(cursor: str) -> tuple[int, str]:
    found = re.fullmatch(CURSOR, cursor)
    if found is None:
        message = "is not one that a page gave"
        raise CursorError(message)
    return int(found[1]), found[2]
