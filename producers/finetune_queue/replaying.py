"""Dead letters for an operator: listed, and sent again once what was wrong with them is fixed."""

from typing import Self

from finetune_queue.errors import UnknownLetterError
from finetune_queue.messaging import Messenger, producer_app
from finetune_queue.sdk.translation import translated
from finetune_queue.settings import Settings
from finetune_queue.store import DeadLetter, DeadLetters, LostDelivery, Outbox, connect

__all__ = ["DeadLetter", "DeadLetterBox"]


class DeadLetterBox:
    """The dead letters of a queue; close it, or use it as a context manager."""

    def __init__(self, settings: Settings) -> None:
        """Connects at the first use."""
        self._redis = connect(settings.finetune_redis_url)
        self._letters = DeadLetters(self._redis)
        self._outbox = Outbox(self._redis)
        self._messenger = Messenger(producer_app(settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._redis.close()

    def newest(self, limit: int) -> list[DeadLetter]:
        """Return up to ``limit`` dead letters, newest first.

        Raises:
            QueueUnavailableError: Redis is out of reach, or refuses.
        """
        with translated():
            return self._letters.newest(limit)

    def replay(self, letter_id: str) -> DeadLetter:
        """Send a dead letter again, as it came, and remove it. One that is refused again comes back as a new one.

        A message keeps its id, so one that is sent twice becomes one job.

        Raises:
            UnknownLetterError: there is none with this id.
            QueueUnavailableError: Redis or the broker is out of reach, or refuses; the letter is kept.
        """
        with translated():
            letter = self._letters.get(letter_id)
            if letter is None:
                message = f"There is no dead letter {letter_id}. It never existed, or was sent again, or is too old."
                raise UnknownLetterError(message)
            if isinstance(letter.content, LostDelivery):
                lost = letter.content
                self._outbox.send_loose(f"{lost.job_id}-replayed-{letter.id}", lost.events, lost.sink_url)
            else:
                self._messenger.send_again(letter.message_id, letter.content)
            self._letters.remove(letter_id)
            return letter
