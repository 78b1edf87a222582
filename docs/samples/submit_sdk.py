"""Submit a fine-tune with the SDK: python submit_sdk.py DATASET ORDER

DATASET is a folder of images, a ZIP or a URL. The same ORDER gives the same job, however often this runs.
Needs FINETUNE_REDIS_URL, and FINETUNE_STAGING_URL for local images.
"""

import sys

from finetune_queue import FineTuneQueue, FineTuneQueueError, SettingsError

if len(sys.argv) != 3:
    sys.exit(__doc__)
dataset, order = sys.argv[1:]
request = {
    "name": f"order-{order}",
    "instance_prompt": "photo of 1MAN",
    "trigger_word": "1MAN",
    "dataset": dataset,
    "labels": {"order": order},
    "reply_to": ["celery://orders/orders.finetuned?events=succeeded,failed,cancelled"],
}
try:
    with FineTuneQueue.from_env() as queue:
        print(queue.submit(request, idempotency_key=order).id)
except (FineTuneQueueError, SettingsError) as error:  # each says what is wrong, and what to do
    sys.exit(str(error))
