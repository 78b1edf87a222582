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
"""Jobs that one page looks through at most: a filter that matches nothing must not read a whole store at once."""

CURSOR = r"^([0-9]{1,15})\.([0-9a-f-]{36})$"


class CursorError(ValueError):
    """The text is no cursor that a page gave."""


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs, and where the next page begins; None after the last one. A page may be short, or empty, before it."""

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
        """Return up to ``limit`` jobs that match all that is given: by creation, or those in a state by when they
        entered it.

        Raises:
            CursorError: ``cursor`` is none of ours.
        """
        index = keys.jobs() if state is None else keys.state(state)
        wanted = (labels or {}).items()
        found: list[JobRecord] = []
        seen = 0
        place = None if cursor is None else _parse(cursor)
        for batch in self._batches(index, place):
            records = {job.id: job for job in self._jobs.get_many([job_id for _, job_id in batch])}
            for place in batch:
                job = records.get(place[1])
                seen += 1
                if (
                    job is not None
                    and (state is None or job.state is state)
                    and (account is None or job.account == account)
                    and wanted <= job.request.labels.items()
                ):
                    found.append(job)
                if len(found) == limit or seen == LONGEST_SCAN:
                    return JobPage(found, f"{place[0]}.{place[1]}")
        return JobPage(found, None)

    def _batches(self, index: str, place: tuple[int, str] | None) -> Iterator[list[tuple[int, str]]]:
        """Yield score and id of what comes after ``place``, in the index's falling order."""
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
