"""How many workers can be of use: the API's limit bounds them, however many jobs wait.

    .venv/bin/python ops/k8s/replicas.py 50/60          # each account's limit, calls/seconds as in its rate_limit

prints the maxReplicaCount of both ScaledObjects. docs/kubernetes.md explains the numbers.
"""

import argparse
import math
import sys
from fractions import Fraction

from pydantic import ValidationError

from finetune_queue.setting_types import RateLimit
from finetune_queue.settings import Settings

SHORT_THREADS = 8
TRANSFER_THREADS = 4
"""Threads of a worker of the queue finetune, and of one of finetune.transfer: ``-c`` in their Deployments."""

CALLS_PER_JOB = 2
"""API calls that each job takes at least: one for the presigned upload, one for the submit."""

CALL_SECONDS = Settings().segmind_call_timeout
"""Seconds that one call holds a thread at most."""

TRANSFER_SECONDS = 120
"""Seconds that one job's upload and download together hold a thread: about 100 MB up and 1 GB down, at 10 MB/s."""

SPARE = 1
"""Workers of the short queue for what is no API call: accept, publish, repeat."""


def replicas(limits: list[RateLimit]) -> tuple[int, int]:
    """Return the most workers of the short queue, and of transfers, that the accounts' limits can keep busy."""
    rate = sum((Fraction(limit.calls) / Fraction(limit.seconds) for limit in limits), Fraction())
    calls_at_once = rate * Fraction(CALL_SECONDS)
    transfers_at_once = rate / CALLS_PER_JOB * TRANSFER_SECONDS
    return (
        math.ceil(calls_at_once / SHORT_THREADS) + SPARE,
        math.ceil(transfers_at_once / TRANSFER_THREADS),
    )


def _limit(text: str) -> RateLimit:
    try:
        return RateLimit.model_validate(text)
    except ValidationError:
        message = f"{text!r} should be calls/seconds, like 50/60 for 50 calls a minute"
        raise argparse.ArgumentTypeError(message) from None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="How many workers the accounts' limits can keep busy.")
    parser.add_argument("limits", nargs="+", type=_limit, metavar="CALLS/SECONDS", help="the limit of each account")
    short, transfer = replicas(parser.parse_args().limits)
    sys.stdout.write(f"finetune-worker           maxReplicaCount: {short}\n")
    sys.stdout.write(f"finetune-worker-transfer  maxReplicaCount: {transfer}\n")
