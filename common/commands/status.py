"""`stsync status`: where every node stands."""

import json
import time
from datetime import datetime
from typing import Annotated

import typer
from rich import box
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
    _show(_console(), found, as_json=as_json)
    raise typer.Exit(exits.OK if found.in_sync else exits.NO)


def _watch(database: Database, settings: Settings, *, as_json: bool) -> None:
    """Until interrupted; redrawn on a terminal, one document or table after the other elsewhere."""
    console = _console()
    if as_json or not console.is_terminal:
        while True:
            _show(console, reading.read(database, settings), as_json=as_json)
            time.sleep(_WATCH_S)
    with Live(_render(reading.read(database, settings)), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(_WATCH_S)
            live.update(_render(reading.read(database, settings)), refresh=True)


def _show(console: Console, found: Status, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found.document, ensure_ascii=False))
    else:
        console.print(_render(found))


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
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("node", "state"):
        table.add_column(name, no_wrap=True)  # what must be readable however narrow the terminal
    for name in ("sequence", "behind", "lag ms", "quarantined", "full sync", "report"):
        table.add_column(name, justify="right", overflow="fold")
    for node in found.nodes:
        table.add_row(
            node.name,
            Text(str(node.state), style=_COLOURS.get(node.state, "red")),
            str(node.sequence),
            str(node.behind),
            "–" if node.lag_ms is None else f"{node.lag_ms:.1f}",
            str(node.quarantined),
            _age(node.last_full_sync, "never"),
            _age(node.last_report, "–"),
        )
    if found.nodes:
        parts.append(table)
    parts += [Text(f"{node.name}: {node.reason}") for node in found.nodes if node.reason]
    if session := document.get("session"):
        nodes = ", ".join(f"{node['name']} {node['phase']}" for node in session["nodes"])
        parts.append(
            Text(f"session {session['session'][:8]} ({session['mode']}, {session['cause']}): {session['phase']}: {nodes}")
        )
    parts += [Text(f"{name}: refused {_kinds(kinds)}") for name, kinds in _refusals(found) if kinds]
    parts += [Text(f"warning: {one}", style="yellow") for one in document["warnings"]]
    return Group(*parts)


def _age(moment: str | None, none: str) -> str:
    """How long ago, in the largest unit that fits."""
    if moment is None:
        return none
    seconds = time.time() - datetime.fromisoformat(moment).timestamp()
    which = "ago" if seconds > -1 else "ahead"  # a clock that was set back
    seconds = abs(seconds)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} {which}"
    return f"{seconds:.0f} s {which}"


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
