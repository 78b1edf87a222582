"""Ways out: how one event gets to one sink. When, in which order and how often is `delivery`'s part."""

from finetune_worker.sinks.errors import DeliveryError
from finetune_worker.sinks.senders import Senders, Sending

__all__ = ["DeliveryError", "Senders", "Sending"]
