"""Leaves a broker that was lent to the demo as it was: exactly the demo's own queues and exchanges go."""

import json

import pika
from pika.exceptions import AMQPError

from deploy.demo.errors import DemoError


def remove(url: str, definitions: str) -> None:
    """Delete what `stsync broker definitions` names; DemoError when the broker does not let us."""
    document = json.loads(definitions)
    try:
        connection = pika.BlockingConnection(pika.URLParameters(url))
        channel = connection.channel()
        for queue in document["queues"]:
            channel.queue_delete(queue["name"])
        for exchange in document["exchanges"]:
            channel.exchange_delete(exchange["name"])
        connection.close()
    except (AMQPError, OSError) as exc:
        names = ", ".join(one["name"] for one in document["queues"] + document["exchanges"])
        raise DemoError(f"the broker still holds {names}: {type(exc).__name__}: {exc}") from exc
