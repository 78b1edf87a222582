"""The worker. ``celery -A finetune_worker`` finds its application in :mod:`finetune_worker.celery`."""
