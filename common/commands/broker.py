"""`stsync broker`: what an administrator of RabbitMQ needs."""

import json
from typing import Annotated

import typer

from common.broker_address import addresses
from common.commands.options import ConfigOption
from common.errors import Misconfigured
from common.settings import load_settings
from common.topology import Topology, definitions

PrimaryOption = Annotated[
    str | None,
    typer.Option(
        "--primary",
        help="Node that may write to all others; else the first of the roster.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add `stsync broker` with its commands."""
    group = typer.Typer(help="What an administrator of RabbitMQ needs.", no_args_is_help=True, rich_markup_mode=None)
    group.command("definitions")(print_definitions)
    group.callback()(_group)
    app.add_typer(group, name="broker")


def print_definitions(config: ConfigOption = None, primary: PrimaryOption = None) -> None:
    """Print RabbitMQ definitions for the roster: users, least permissions, exchanges, queues and bindings.

    The users, stsync.CLUSTER.NODE, cannot log in by password until you have set one:
    rabbitmqctl change_password USER PASSWORD.
    """
    settings = load_settings(config)
    cluster, broker = settings.cluster, settings.broker
    chosen = primary or cluster.names[0]
    if chosen not in cluster.names:
        raise Misconfigured(f"--primary: {chosen!r} is not in the roster cluster.nodes ({', '.join(cluster.names)})")
    topology = Topology(cluster.name, cluster.names, chosen, broker.queue_type, broker.queue_max_bytes)
    document = definitions(topology, vhost=addresses(broker)[0].vhost)
    typer.echo(json.dumps(document, indent=2))


def _group() -> None:
    """Keep `broker` a group, though it has one command."""
