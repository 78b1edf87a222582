"""Messages that cannot become a job: each is set aside as it came, and an event tells of it."""

from typing import Any, cast

import redis

from finetune_queue.contract import EventType
from finetune_queue.contract.event import rejected_event
from finetune_queue.plain_words import encodable
from finetune_queue.store import keys
from finetune_queue.store.dead_letters import MOST_LETTERS, DeadLetter, RawMessage, TaskCall
from finetune_queue.store.feed import STREAM_LENGTH
from finetune_queue.store.outbox import Outbox


class Rejections:
    """Sets messages aside. One instance serves a whole process; it is safe in threads."""

    def __init__(self, client: redis.Redis, outbox: Outbox) -> None:
        self._redis = client
        self._outbox = outbox

    def add(self, message_id: str, message: TaskCall | RawMessage, reason: str, problems: list[str]) -> None:
        """Make a dead letter of a message, as it came, and tell of it by an event."""
        pipe = self._redis.pipeline(transaction=True)
        message_id, problems = encodable(message_id), list(map(encodable, problems))
        letter = DeadLetter(message_id, reason, problems, message)
        pipe.xadd(keys.dead_letters(), cast("dict[Any, Any]", letter.fields()), maxlen=MOST_LETTERS)
        event = rejected_event(message_id, reason, problems)
        text = event.model_dump_json()
        pipe.xadd(keys.events(), {"event": text}, maxlen=STREAM_LENGTH)
        pipe.execute()
        if self._outbox.wants(EventType.REJECTED):
            self._outbox.send_loose(event.id, [text])
