"""Task events and heartbeats: what Celery's event loop says must not hold it up."""

import threading
from pathlib import Path
from types import SimpleNamespace

from celery.events import EventDispatcher

from finetune_queue.local.valkey import ValkeyServer
from finetune_queue.messaging import producer_app
from finetune_queue.settings import Settings
from finetune_worker.chatter import EventBatches


def test_a_heartbeat_to_a_broker_that_is_away_is_tried_once(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "broker") as broker:
        app = producer_app(Settings(finetune_redis_url=broker.url))
        with app.connection() as connection:
            events = EventDispatcher(connection, hostname="worker1", app=app)
            consumer = SimpleNamespace(event_dispatcher=events, hub=None)
            EventBatches(consumer).start(consumer)
            events.send("worker-online")  # connects
            broker.kill()
            beat = threading.Thread(target=events.send, args=["worker-heartbeat"], kwargs={"retry": True}, daemon=True)
            beat.start()
            beat.join(4)  # four tries, as kombu makes them, take six seconds
            assert not beat.is_alive()
        app.close()
