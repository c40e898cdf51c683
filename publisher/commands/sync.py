"""`stsync sync` and `stsync verify`: make all secondaries equal to the primary, rehearse it, or prove that they are (INTERFACE)."""

import json
import time
from typing import Annotated, Any

import typer
from sqlalchemy.engine import Connection

from common import exits, sessions, status
from common.commands.options import ConfigOption, JsonOption
from common.database import Database
from common.errors import Refused, StsyncError
from common.nodestate import Role, read_installed
from common.session import Mode, Phase
from common.sessions import Request
from common.settings import Settings, load_settings
from publisher.commands import session_view

_LOOK_S = 0.1
_SERVICE_S = 3.0
_PARTING_S = 20.0
_PATIENCE_S = 60.0
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", metavar="SECONDS", min=1.0, help="End it after so long; else sessions.timeout_s.", show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    """Add `sync`."""
    app.command("sync")(sync)


def register_verify(app: typer.Typer) -> None:
    """Add `verify`."""
    app.command("verify")(verify)


def sync(
    config: ConfigOption = None,
    as_json: JsonOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would change; change nothing, pause nobody.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Send every row, not only what differs.")] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Only ask for it; `stsync status` tells how far it is.")
    ] = False,
    timeout: Timeout = None,
) -> None:
    """Synchronize All: make every secondary equal to this node, the primary; exit 1 if that failed on one of them."""
    settings = load_settings(config)
    mode = Mode.REHEARSE if dry_run else Mode.SYNC
    done = _run(settings, mode, full=full, no_wait=no_wait, timeout_s=timeout, quiet=as_json)
    document = _document(done)
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False))
    else:
        session_view.show(done, document)
    raise typer.Exit(exits.OK if no_wait or _well(done) else exits.NO)


def verify(config: ConfigOption = None, as_json: JsonOption = False, timeout: Timeout = None) -> None:
    """Compare every secondary with this node, the primary, at one position, while changes go on; exit 1 if one is not equal."""
    settings = load_settings(config)
    done = _run(settings, Mode.VERIFY, full=False, no_wait=False, timeout_s=timeout, quiet=as_json)
    document = _verified(done)
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False))
    else:
        session_view.show(done, document)
    raise typer.Exit(exits.OK if document["equal"] else exits.NO)


def _run(settings: Settings, mode: Mode, *, full: bool, no_wait: bool, timeout_s: float | None, quiet: bool) -> Request:
    """Ask for a session and see it through; raises Refused where it may not be asked for here or now."""
    database = Database(settings.database)
    with database.connect() as connection:
        state = read_installed(connection, settings)
        connection.rollback()
        if state.role is not Role.PRIMARY:
            raise Refused(f"this node is a secondary; run this on the primary, {state.primary_name}")
        if not no_wait and not status.service_runs(database):
            raise Refused("this node's service does not run, so that nothing can be done; start it with `stsync run`")
        number = _ask(connection, mode, full=full, timeout_s=timeout_s or settings.sessions.timeout_s)
    if no_wait:
        with database.connect() as connection:
            found = _read(database, number)
        waits = "" if status.service_runs(database) else "; this node's service does not run: it begins when that is started"
        typer.echo(f"asked for: {found.title}{waits}", err=True)
        return found
    try:
        with session_view.watching(quiet=quiet) as show:
            return _wait(database, number, show)
    except KeyboardInterrupt:
        found = _cancel(database, number)
        typer.echo(f"stsync: interrupted: {session_view.outcome(found)}", err=True)
        raise typer.Exit(130) from None


def _ask(connection: Connection, mode: Mode, *, full: bool, timeout_s: float) -> int:
    """What the service does by itself is short, mostly: it is waited for. Raises Refused."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return sessions.ask(connection, mode, full=full, timeout_s=timeout_s)
        except Refused:
            found = sessions.newest_open(connection)
            connection.rollback()
            if (found is not None and found.cause == sessions.OPERATOR) or time.monotonic() > until:
                raise
        time.sleep(_LOOK_S)


def _wait(database: Database, number: int, show: session_view.Show) -> Request:
    looked = time.monotonic()
    while True:
        found = _read(database, number)
        show(found)
        if found.phase.over:
            return found
        if time.monotonic() - looked > _SERVICE_S:
            looked = time.monotonic()
            if not status.service_runs(database):
                raise StsyncError("this node's service has ended, and the session with it; see its log, and ask again")
        time.sleep(_LOOK_S)


def _cancel(database: Database, number: int) -> Request:
    with database.connect() as connection:
        sessions.cancel(connection, number)
    until = time.monotonic() + _PARTING_S
    while not (found := _read(database, number)).phase.over and time.monotonic() < until:
        time.sleep(_LOOK_S)
    return found


def _read(database: Database, number: int) -> Request:
    with database.connect(read_only=True) as connection:
        found = sessions.read(connection, number)
        connection.rollback()
    if found is None:
        raise StsyncError("the session's row is gone from stsync_sessions; was the database restored?")
    return found


def _nodes(done: Request) -> list[dict[str, Any]]:
    return list(done.progress.get("nodes", []))


def _well(done: Request) -> bool:
    nodes = _nodes(done)
    if done.phase is not Phase.RESUMED:
        return False
    return all(node["result"] == "done" and (done.mode is Mode.SYNC or node["equal"]) for node in nodes)


def _document(done: Request) -> dict[str, Any]:
    position = None if done.position is None else {"epoch": done.position[0], "sequence": done.position[1]}
    return {
        "session": done.session,
        "mode": str(done.mode),
        "phase": str(done.phase),
        "reason": done.reason,
        "position": position,
        "nodes": _nodes(done),
    }


def _verified(done: Request) -> dict[str, Any]:
    document = _document(done)
    nodes = [
        {
            "name": node["name"],
            "equal": node["result"] == "done" and node["equal"],
            "result": node["result"],
            "reason": node["reason"],
            "tables": node["tables"],
            "files": [],
        }
        for node in _nodes(done)
    ]
    return document | {"equal": _well(done), "nodes": nodes}
