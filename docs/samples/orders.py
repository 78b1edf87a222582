"""A Python service that reacts to results: celery -A orders worker -Q orders

Events come at least once, so what was done is remembered by the event's id. A task that raises is tried again, as
Celery would take its event for done.
"""

import os
from typing import Any

from celery import Celery
from redis import Redis

URL = os.environ["FINETUNE_REDIS_URL"]
A_WEEK = 7 * 24 * 3600

app = Celery("orders", broker=URL)
app.conf.update(
    broker_transport_options={"global_keyprefix": "{finetune}:", "visibility_timeout": 3600},
    worker_disable_prefetch=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,  # else an event is gone whose process was killed
)
done = Redis.from_url(URL, decode_responses=True)


def tell(message: str) -> None:
    """Tell the customer; a service sends a mail here."""
    print(message, flush=True)


# For ever, with 10 minutes at most between two tries; without this an event is acknowledged when its task raises.
@app.task(name="orders.finetuned", autoretry_for=(Exception,), retry_backoff=True, max_retries=None)
def finetuned(event: dict[str, Any]) -> str:
    """Tell the customer of an order what became of it."""
    if done.exists(f"orders:done:{event['id']}"):
        return "was done before"
    data = event["data"]
    order = data["labels"].get("order", "?")
    if data["state"] == "succeeded":
        said = f"order {order}: weights at {data['weights']['url']}"
    else:
        said = f"order {order} {data['state']}: {data.get('error', {}).get('message', '')}"
    tell(said)
    done.set(f"orders:done:{event['id']}", 1, ex=A_WEEK)
    return said
