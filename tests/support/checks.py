"""Files of a dataset in which the check finds nothing wrong, and the check of an archive."""

from functools import cache
from pathlib import Path

from finetune_queue.datasets.check import check_archive
from finetune_queue.datasets.limits import DEFAULT_LIMITS, Limits
from finetune_queue.datasets.report import DatasetReport
from support.images import image_bytes

GOOD_SIZE = (1024, 1024)


@cache
def good_image(number: int) -> bytes:
    return image_bytes(number, GOOD_SIZE)


def good_files(count: int = 6) -> dict[str, bytes]:
    """Return images and captions in which the check finds nothing wrong, by file name."""
    files: dict[str, bytes] = {}
    for number in range(count):
        files[f"p{number}.jpg"] = good_image(number)
        files[f"p{number}.txt"] = f"1MAN walks, {number}".encode()
    return files


def check(path: Path, limits: Limits = DEFAULT_LIMITS) -> DatasetReport:
    return check_archive(path, trigger_word="1MAN", instance_prompt="1MAN in a brown suit", limits=limits)


def codes(report: DatasetReport) -> set[str]:
    return {each.code for each in report.findings}
