"""What the SDK raises.

FineTuneQueueError
├── InvalidRequestError       the request cannot be accepted; ``problems`` says why
│   └── InvalidArgumentError  nor can the argument of another call
├── IdempotencyConflictError  the idempotency key was used with another request
├── UnknownJobError           there is no job with this id
├── UnknownLetterError        there is no dead letter with this id
├── UnknownAccountNameError   no worker serves this account
├── UnknownStateError         jobs have no such state
├── NotPossibleError          the job's state does not allow it
│   └── UnreadableJobError    only a newer version of this package can read the job
├── WaitTimeoutError          ``wait`` gave up; the job goes on
├── QueueUnavailableError     Redis or the broker is out of reach; nothing was lost
├── StagingUnavailableError   the staging store did not accept the dataset
├── WeightsUnavailableError   the weights cannot be read from here, or are not there any more
├── WeightsDamagedError       what is stored is not what the job stored
└── TargetError               the weights cannot be written where the caller wants them
"""


class FineTuneQueueError(Exception):
    """The base of all errors of the SDK."""


class InvalidRequestError(FineTuneQueueError):
    """The request cannot be accepted."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("The fine-tune request cannot be accepted:\n" + "\n".join(f"  {line}" for line in problems))
        self.problems = problems


class InvalidArgumentError(InvalidRequestError, ValueError):
    """An argument of a call is of the wrong type, or says nothing that can be done. A ValueError, too."""

    def __init__(self, problem: str) -> None:
        Exception.__init__(self, problem)
        self.problems = [problem]


class IdempotencyConflictError(FineTuneQueueError):
    """The idempotency key was used with another request."""


class UnknownJobError(FineTuneQueueError):
    """There is no job with this id."""


class UnknownLetterError(FineTuneQueueError):
    """There is no dead letter with this id."""


class UnknownAccountNameError(FineTuneQueueError):
    """No worker has announced the account whose submits are to be stopped or resumed. A submit does not ask."""


class UnknownStateError(FineTuneQueueError):
    """Jobs have no such state."""


class NotPossibleError(FineTuneQueueError):
    """The job's state does not allow what was asked."""


class UnreadableJobError(NotPossibleError):
    """The job was written by a newer version of this package, which has to be used for it."""


class WaitTimeoutError(FineTuneQueueError):
    """``wait`` gave up before the job ended. The job goes on."""


class QueueUnavailableError(FineTuneQueueError):
    """Redis or the broker is out of reach."""


class StagingUnavailableError(FineTuneQueueError):
    """The staging store did not accept the dataset."""


class WeightsUnavailableError(FineTuneQueueError):
    """A job's weights are not where the job stored them, or this process cannot read them there."""


class WeightsDamagedError(FineTuneQueueError):
    """What is stored has not the length or the sha256 that the job recorded."""


class TargetError(FineTuneQueueError):
    """The weights cannot be written where the caller wants them, or another file is there."""
