"""Submit a fine-tune with nothing but Celery: python submit_celery.py DATASET_URL ORDER

The task's id becomes the job's. Everybody on this broker uses the same transport options: see docs/contract/README.md.
"""

import os
import sys
import uuid

from celery import Celery

if len(sys.argv) != 3:
    sys.exit(__doc__)
app = Celery("shop", broker=os.environ["FINETUNE_REDIS_URL"])
app.conf.broker_transport_options = {"global_keyprefix": "{finetune}:", "visibility_timeout": 3600}

dataset, order = sys.argv[1:]
request = {
    "name": f"order-{order}",
    "instance_prompt": "photo of 1MAN",
    "trigger_word": "1MAN",
    "dataset": dataset,
    "labels": {"order": order},
    "reply_to": ["celery://orders/orders.finetuned?events=succeeded,failed,cancelled"],
}
job_id = str(uuid.uuid4())
# Priority 9 is the last: new requests do not keep what was started from going on.
app.send_task("finetune.run", [request], queue="finetune", task_id=job_id, priority=9, ignore_result=True)
print(job_id)
