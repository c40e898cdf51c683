"""`stsync status`: where every node stands."""

import json
import time
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from common import exits
from common import status as reading
from common.commands.options import ConfigOption, JsonOption
from common.database import Database
from common.nodestate import State
from common.settings import Settings, load_settings
from common.status import Status

_COLOURS = {
    State.IN_SYNC: "green",
    State.CATCHING_UP: "yellow",
    State.SYNCHRONIZING: "yellow",
    State.PAUSED: "yellow",
}
_WATCH_S = 1.0


def register(app: typer.Typer) -> None:
    """Add `status`."""
    app.command("status")(status)


def status(
    config: ConfigOption = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second, until interrupted.")] = False,
) -> None:
    """Show where every node stands; exit 1 if one is not in_sync."""
    settings = load_settings(config)
    database = Database(settings.database)
    if watch:
        _watch(database, settings, as_json=as_json)
        return
    found = reading.read(database, settings)
    if as_json:
        typer.echo(json.dumps(found.document, ensure_ascii=False))
    else:
        _console().print(_render(found))
    raise typer.Exit(exits.OK if found.in_sync else exits.NO)


def _watch(database: Database, settings: Settings, *, as_json: bool) -> None:
    if as_json:
        while True:
            typer.echo(json.dumps(reading.read(database, settings).document, ensure_ascii=False))
            time.sleep(_WATCH_S)
    with Live(_render(reading.read(database, settings)), console=_console(), auto_refresh=False) as live:
        while True:
            time.sleep(_WATCH_S)
            live.update(_render(reading.read(database, settings)), refresh=True)


def _console() -> Console:
    """As wide as the terminal, and never so narrow in a pipe that a column is cut."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _render(found: Status) -> RenderableType:
    document = found.document
    head = (
        f"cluster {document['cluster']} · node {document['node']} · {document['role']} · service {document['service']}"
        f" · epoch {document['epoch']} · sequence {document['sequence']}"
    )
    parts: list[RenderableType] = [Text(head)]
    if "journal" in document:
        journal = document["journal"]
        parts.append(
            Text(f"outbox {document['outbox']} · journal {journal['first']}–{journal['last']}, {_bytes(journal['bytes'])}")
        )
    table = Table(
        "node",
        "state",
        "sequence",
        "behind",
        "lag",
        "quarantined",
        "refused",
        "last full sync",
        "last report",
    )
    for node in found.nodes:
        colour = _COLOURS.get(node.state, "red")
        table.add_row(
            node.name,
            Text(str(node.state), style=colour),
            str(node.sequence),
            str(node.behind),
            "–" if node.lag_ms is None else f"{node.lag_ms:.1f} ms",
            str(node.quarantined),
            str(sum(node.refused.values())),
            node.last_full_sync or "never",
            node.last_report or "–",
        )
    if found.nodes:
        parts.append(table)
    parts += [Text(f"{node.name}: {node.reason}") for node in found.nodes if node.reason]
    parts += [Text(f"{name}: refused {_kinds(kinds)}") for name, kinds in _refusals(found) if kinds]
    parts += [Text(f"warning: {one}", style="yellow") for one in document["warnings"]]
    return Group(*parts)


def _refusals(found: Status) -> list[tuple[str, dict[str, int]]]:
    own = [(str(found.document["node"]), dict(found.document.get("refused") or {}))] if "journal" in found.document else []
    return own + [(node.name, node.refused) for node in found.nodes]


def _kinds(kinds: dict[str, int]) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items()))


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
