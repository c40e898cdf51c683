"""`stsync ready`: whether this node's transaction manager may start, for start scripts and health checks."""

import time
from typing import Annotated

import typer

from common import exits, nodestate, readiness, status
from common.commands.options import ConfigOption
from common.database import Database
from common.errors import Unavailable
from common.nodestate import State
from common.settings import Settings, load_settings

_LOOK_S = 0.5


def register(app: typer.Typer) -> None:
    """Add `ready`."""
    app.command("ready")(ready)


def ready(
    config: ConfigOption = None,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0.0, max=1e9, help="Wait for it so long.", show_default=False)
    ] = 0.0,
) -> None:
    """May this node's TM server start? Exit 1 if not, with the reason and what to do."""
    settings = load_settings(config)
    database = Database(settings.database)
    until = time.monotonic() + wait
    while True:
        found = _obstacle(database, settings)
        left = until - time.monotonic()
        if found is None or left <= 0:
            break
        time.sleep(min(_LOOK_S, left))
    typer.echo("ready" if found is None else f"not ready: {found}")
    raise typer.Exit(exits.OK if found is None else exits.NO)


def _obstacle(database: Database, settings: Settings) -> str | None:
    try:
        return _of_now(database, settings)
    except Unavailable as exc:  # it may come
        return str(exc)


def _of_now(database: Database, settings: Settings) -> str | None:
    document = status.read(database, settings).document
    with database.connect(read_only=True) as connection:
        node = nodestate.read_installed(connection, settings)
        connection.rollback()
    facts = readiness.Facts(
        node,
        running=document["service"] == "running",
        state=State(document.get("state", State.IN_SYNC)),
        reason=document.get("reason"),
        behind=document.get("behind", 0),
        quarantined=document.get("quarantined", 0),
    )
    return readiness.obstacle(facts, settings.readiness)
