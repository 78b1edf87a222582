"""The AsyncAPI document of the published contract: where requests come in and events go out, and what brings them."""

from typing import Any

from finetune_queue.contract import EventType
from finetune_queue.contract.event import type_name
from finetune_queue.messaging import ACCEPT, QUEUE, RUN
from finetune_queue.store import keys


def _carriers(event: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the messages that bring an event of any kind, ``event`` for example, with headers of their own."""
    trace = {
        "traceparent": {"type": "string", "description": "The event's own, for instrumentations; none without a trace."}
    }
    of_any_kind = {"$ref": "event.schema.json"}
    return {
        "EventTask": {
            "title": "An event as a Celery task",
            "summary": "A Celery task with one positional argument, the event.",
            "contentType": "application/json",
            "headers": {
                "type": "object",
                "description": "Celery's message protocol 2, with its other headers.",
                "required": ["task", "id"],
                "properties": {
                    "task": {"type": "string", "description": "That of the sink's URL."},
                    "id": {"type": "string", "description": "The event's id."},
                    **trace,
                },
            },
            "payload": _task_body(of_any_kind),
            "examples": [{"name": "succeeded", "payload": [[event], {}, {}]}],
        },
        "EventMessage": {
            "title": "An event on another broker",
            "summary": "The event as it is. The message's properties message_id and type are the event's id and type.",
            "contentType": "application/json",
            "headers": {"type": "object", "properties": trace, "additionalProperties": False},
            "payload": of_any_kind,
            "examples": [{"name": "succeeded", "payload": event}],
        },
        "EventPost": {
            "title": "An event as a POST",
            "summary": "CloudEvents' HTTP binding, structured mode, signed by Standard Webhooks 1.0.0.",
            "contentType": "application/cloudevents+json; charset=utf-8",
            "headers": {
                "type": "object",
                "description": "Beside those of HTTP.",
                "required": ["webhook-id", "webhook-timestamp", "webhook-signature"],
                "properties": {
                    "webhook-id": {"type": "string", "description": "The event's id: the same at each repeat."},
                    "webhook-timestamp": {
                        "type": "string",
                        "pattern": "^[0-9]+$",
                        "description": "When it was sent, in seconds since 1970.",
                    },
                    "webhook-signature": {
                        "type": "string",
                        "pattern": "^v1,[A-Za-z0-9+/=]+( v1,[A-Za-z0-9+/=]+)*$",
                        "description": "A signature for each secret, separated by spaces.",
                    },
                    **trace,
                },
            },
            "payload": of_any_kind,
            "examples": [{"name": "succeeded", "payload": event}],
        },
    }


def _task_body(argument: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "array",
        "description": "args, kwargs and embed of Celery's protocol 2.",
        "minItems": 3,
        "maxItems": 3,
        "items": [
            {"type": "array", "minItems": 1, "maxItems": 1, "items": argument},
            {"type": "object", "maxProperties": 0},
            {"type": "object"},
        ],
    }


def asyncapi(request: dict[str, Any], events: dict[EventType, dict[str, Any]], version: str) -> dict[str, Any]:
    """Return the AsyncAPI 3 document of a version of the contract, with a request and an event of each kind for
    examples. The schemas are the files beside it."""
    celery_headers = {
        "type": "object",
        "description": "Celery's message protocol 2. A client in another language needs no more than these.",
        "required": ["task", "id"],
        "properties": {
            "task": {"const": RUN},
            "id": {
                "type": "string",
                "format": "uuid",
                "description": "Becomes the job's id, so a repeat is the same job.",
            },
            "lang": {"type": "string"},
            "traceparent": {
                "type": "string",
                "description": "W3C Trace Context, if there is any: the job continues this trace.",
            },
        },
    }
    names = {kind: f"{kind.value.title().replace('_', '')}Event" for kind in EventType}
    messages: dict[str, Any] = {
        "RunMessage": {
            "name": RUN,
            "title": "A request to fine-tune",
            "summary": "A Celery task with one positional argument, the request.",
            "contentType": "application/json",
            "headers": celery_headers,
            "payload": _task_body({"$ref": "request.schema.json"}),
            "examples": [{"name": "minimal", "payload": [[request], {}, {}]}],
        },
    }
    for kind, name in names.items():
        messages[name] = {
            "name": type_name(kind),
            "title": f"A job's event: {kind.value}" if kind is not EventType.REJECTED else "A rejected message",
            "contentType": "application/cloudevents+json",
            "payload": {"$ref": "event.schema.json"},
            "examples": [{"name": kind.value, "payload": events[kind]}],
        }

    kinds = list(names.values())
    messages |= _carriers(events[EventType.SUCCEEDED])

    # A key holds its hash tag with the braces, which in an address stand for a parameter.
    tag = {
        keys.TAG.strip("{}"): {"enum": [keys.TAG], "default": keys.TAG, "description": "The keys' hash tag, as it is."}
    }

    def channel(address: str | None, description: str, brought: list[str], **parameters: str) -> dict[str, Any]:
        made: dict[str, Any] = {"address": address, "description": description}
        described: dict[str, Any] = {name: {"description": text} for name, text in parameters.items()}
        if address is not None and keys.TAG in address:
            described |= tag
        if described:
            made["parameters"] = described
        made["messages"] = {name: {"$ref": f"#/components/messages/{name}"} for name in brought}
        return made

    channels = {
        "requests": {
            "address": f"{keys.BROKER_PREFIX}{QUEUE}",
            "description": "The Celery queue of requests. On Redis each priority has a list, whose consumers take from "
            "the right; that of priority 9, the one for requests, has \\x06\\x169 after the name.",
            "parameters": tag,
            "messages": {"RunMessage": {"$ref": "#/components/messages/RunMessage"}},
            "x-celery": {
                "queue": QUEUE,
                "task": RUN,
                "global_keyprefix": keys.BROKER_PREFIX,
                "priority": ACCEPT,
                "protocol": 2,
            },
        },
        "events": channel(
            keys.events(), "A Redis stream of all events, field `event`; trimmed to about 100,000.", kinds
        ),
        "stream-sink": channel(
            "{name}", "`stream://NAME`: a Redis stream, field `event`.", kinds, name="The stream's key."
        ),
        "list-sink": channel("{name}", "`list://NAME`: a Redis list; take with BRPOP.", kinds, name="The list's key."),
        "celery-sink": {
            **channel(
                f"{keys.BROKER_PREFIX}{{queue}}",
                "`celery://QUEUE/task.name`.",
                ["EventTask"],
                queue="The Celery queue.",
            ),
            "x-celery": {"args": ["the event"], "task_id": "the event's id", "global_keyprefix": keys.BROKER_PREFIX},
        },
        "broker-sink": channel(
            "{queue}",
            "`amqp://HOST/VHOST?queue=NAME` and the like; with `&task=NAME` a task.",
            ["EventMessage", "EventTask"],
            queue="The queue's name.",
        ),
        "web-sink": {
            **channel("{path}", "`https://HOST/PATH`: a POST.", ["EventPost"], path="Path and query."),
            "x-standard-webhooks": {"webhook-id": "the event's id", "success": "2xx", "disabled": 410},
        },
    }
    operations = {
        "submit": {
            "action": "receive",
            "channel": {"$ref": "#/channels/requests"},
            "summary": "Take a request. It becomes a job, or a `rejected` event and a dead letter.",
        }
    }
    for name in list(channels)[1:]:
        operations[f"tell-{name}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{name}"},
            "summary": "Report on a job: at least once, in order for each job, with stable ids.",
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "finetune-queue",
            "version": version,
            "description": "Requests to fine-tune at Segmind, and the events of the jobs that they become.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "redis": {"host": "localhost:6379", "protocol": "redis", "description": "FINETUNE_REDIS_URL."},
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }
