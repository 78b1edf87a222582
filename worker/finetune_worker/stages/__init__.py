"""The stages: plain functions, each idempotent, that take a claimed job one step further. No Celery in here."""
