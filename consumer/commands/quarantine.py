"""`stsync quarantine`: changes that could not be applied on this node."""

import json
import time
from typing import Annotated, Any

import typer

from common import exits, running
from common.catalog import listed_tables
from common.commands.options import ConfigOption, JsonOption
from common.database import Database
from common.errors import NotApplicable, Refused
from common.nodestate import iso, read_installed
from common.settings import Settings, load_settings
from consumer import quarantine
from consumer.quarantine import Entry
from consumer.replay import Replayer

_PATIENCE_S = 15.0
Ids = Annotated[
    list[int] | None,
    typer.Argument(metavar="[ID]...", help="Ids from `quarantine list`; none: all.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the sub-commands."""
    group = typer.Typer(help="Changes that could not be applied on this node.", no_args_is_help=True)
    group.command("list")(list_)
    group.command("show")(show)
    group.command("retry")(retry)
    group.command("discard")(discard)
    app.add_typer(group, name="quarantine")


def list_(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List them with their reasons; exit 1 if there are any."""
    database, settings = _open(config)
    found = _entries(database, settings)
    if as_json:
        typer.echo(json.dumps({"quarantined": [_document(entry) for entry in found]}, ensure_ascii=False))
    else:
        _print(found)
    raise typer.Exit(exits.NO if found else exits.OK)


def show(
    entry_id: Annotated[int, typer.Argument(metavar="ID")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one with its values; exit 1, as it remains."""
    database, settings = _open(config)
    entry = _one(database, settings, entry_id)
    document = _document(entry) | {"columns": list(entry.step.columns), "row": _parsed(entry.step.rows)}
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False))
    else:
        for key, value in document.items():
            typer.echo(f"{key:>12}  {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    raise typer.Exit(exits.NO)


def retry(ids: Ids = None, config: ConfigOption = None) -> None:
    """Try them again, those that are never tried by themselves only by their ids; exit 1 if any remains."""
    database, settings = _open(config)
    for wanted in ids or []:
        _one(database, settings, wanted)
    before = {entry.id for entry in _entries(database, settings, ids) if ids or not entry.held}
    _retry(database, settings, sorted(before))
    remaining = _entries(database, settings)
    gone = before - {entry.id for entry in remaining}
    typer.echo(f"{len(gone)} applied, {len(before) - len(gone)} still cannot be applied")
    _print([entry for entry in remaining if entry.id in before], empty="")
    raise typer.Exit(exits.NO if remaining else exits.OK)


def discard(entry_id: Annotated[int, typer.Argument(metavar="ID")], config: ConfigOption = None) -> None:
    """Give one up for good: this node then differs from the primary in that row; exit 1 if others remain."""
    database, settings = _open(config)
    entry = _one(database, settings, entry_id)
    with database.connect() as connection:
        quarantine.discard(connection, [entry.id])
        connection.commit()
    typer.echo(
        f"discarded: {entry.step.kind.name.lower()} of {entry.step.table} [{entry.key}]; this node differs from the primary there"
    )
    raise typer.Exit(exits.NO if _entries(database, settings) else exits.OK)


def _open(config: ConfigOption) -> tuple[Database, Settings]:
    settings = load_settings(config)
    return Database(settings.database), settings


def _entries(database: Database, settings: Settings, ids: list[int] | None = None) -> list[Entry]:
    with database.connect(read_only=True) as connection:
        read_installed(connection, settings)
        return quarantine.entries(connection, ids or ())


def _one(database: Database, settings: Settings, entry_id: int) -> Entry:
    found = _entries(database, settings, [entry_id])
    if not found:
        raise Refused(f"no change {entry_id} stands in the quarantine of this node; see `stsync quarantine list`")
    return found[0]


def _retry(database: Database, settings: Settings, ids: list[int]) -> None:
    """By the running service, which alone knows what came later; here where none runs."""
    if not ids:
        return
    with database.connect() as connection:
        if running.lock(database, connection):
            listed = listed_tables(database, connection, settings)
            connection.rollback()
            replayer = Replayer(database.dialect, listed, settings.replay.statement_bytes)
            try:
                quarantine.retry_all(connection, database, replayer, ids)
            except NotApplicable as exc:
                raise Refused(f"the database refused to commit what could be applied again: {exc}") from exc
            return
        quarantine.request_retry(connection, ids)
        connection.commit()
        waiting, until = set(ids), time.monotonic() + _PATIENCE_S
        while (left := waiting.intersection(quarantine.requested(connection))) and time.monotonic() < until:
            if left < waiting:
                waiting, until = left, time.monotonic() + _PATIENCE_S  # it gets on
            connection.rollback()
            time.sleep(0.1)
        connection.rollback()


def _document(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "table": entry.step.table,
        "kind": entry.step.kind.name.lower(),
        "key": _parsed(f"[{entry.key}]"),
        "reason": entry.reason,
        "epoch": entry.epoch,
        "sequence": entry.sequence,
        "attempts": entry.attempts,
        "first": iso(entry.first_ms),
        "last": iso(entry.last_ms),
    }


def _parsed(text: str) -> Any:
    """A row, or the text itself where it is none and waits for that reason."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _print(found: list[Entry], empty: str = "nothing is quarantined on this node") -> None:
    if not found:
        typer.echo(empty, nl=bool(empty))
        return
    for entry in found:
        attempts = f"{entry.attempts} attempt{'s' if entry.attempts != 1 else ''}"
        what = f"{entry.step.kind.name.lower()} {entry.step.table} [{entry.key}]"
        typer.echo(
            f"{entry.id}  {what}  sequence {entry.sequence}, {attempts} since {iso(entry.first_ms)}\n    {entry.reason}"
        )
