"""Leaves a broker that was lent to the demo as it was: exactly the demo's own queues and exchanges go."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pika
from pika.exceptions import AMQPError

from deploy.demo.errors import DemoError

STSYNC = Path(sys.executable).with_name("stsync")


def check(url: str) -> None:
    """DemoError unless the broker lets us in."""
    try:
        pika.BlockingConnection(pika.URLParameters(url)).close()
    except (AMQPError, OSError, ValueError) as exc:
        kind = type(exc).__name__
        raise DemoError(
            f"the broker named by --broker-url cannot be used ({kind} {exc}); is it up, and its user right?"
        ) from exc


def remove(settings: Path) -> None:
    """Delete what `stsync broker definitions` names for this node; DemoError when the broker does not let us."""
    url = tomllib.loads(settings.read_text(encoding="utf-8"))["broker"]["urls"][0]
    words = [str(STSYNC), "broker", "definitions", "--config", str(settings)]
    document = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
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
        raise DemoError(f"the broker may still hold {names}: {type(exc).__name__} {exc}") from exc


if __name__ == "__main__":
    try:
        remove(Path(sys.argv[1]))
    except DemoError as error:
        sys.exit(str(error))
