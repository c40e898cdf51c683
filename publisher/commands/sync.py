"""`stsync sync` and `stsync verify`: make all secondaries equal to the primary, rehearse it, or prove that they are (INTERFACE)."""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import typer
from sqlalchemy.engine import Connection

from common import exits, sessions
from common.commands.options import ConfigOption, JsonOption
from common.database import Database
from common.errors import Refused, StsyncError
from common.nodestate import Role, read_installed
from common.running import service_runs
from common.session import Mode, Phase, new_id
from common.sessions import Request
from common.settings import Settings, load_settings

_FIRST_LOOK_S, _LOOK_S, _SHARE = 0.02, 0.1, 0.05  # and of the time that has been waited
_BEGIN_S = 1.0  # within which a service that runs has begun a session
_SERVICE_S = 3.0
_PARTING_S = 20.0
_GIVES_WAY_S, _PATIENCE_S = 3.0, 60.0
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        min=1.0,
        max=1e9,
        help="End it after so long; else sessions.timeout_s.",
        show_default=False,
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
        _show(done, document)
    raise typer.Exit(exits.OK if no_wait or _well(done) else exits.NO)


def verify(config: ConfigOption = None, as_json: JsonOption = False, timeout: Timeout = None) -> None:
    """Compare every secondary with this node, the primary, at one position, while changes go on; exit 1 if one is not equal."""
    settings = load_settings(config)
    done = _run(settings, Mode.VERIFY, full=False, no_wait=False, timeout_s=timeout, quiet=as_json)
    document = _verified(done)
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False))
    else:
        _show(done, document)
    raise typer.Exit(exits.OK if document["equal"] else exits.NO)


def _run(settings: Settings, mode: Mode, *, full: bool, no_wait: bool, timeout_s: float | None, quiet: bool) -> Request:
    """Ask for a session and see it through; raises Refused where it may not be asked for here or now."""
    database, session = Database(settings.database), new_id()
    try:
        number = _asked(database, settings, mode, session, full=full, timeout_s=timeout_s or settings.sessions.timeout_s)
        with database.connect(read_only=True) as reading:
            if no_wait:
                found = _read(reading, number)
                waits = (
                    "" if service_runs(database) else "; this node's service does not run: it begins when that is started"
                )
                typer.echo(f"asked for: {found.title}{waits}", err=True)
                return found
            with _watching(quiet=quiet) as show:
                return _wait(database, reading, number, show)
    except KeyboardInterrupt:
        typer.echo(f"stsync: interrupted: {_cancel(database, session)}", err=True)
        raise typer.Exit(130) from None


def _asked(database: Database, settings: Settings, mode: Mode, session: bytes, *, full: bool, timeout_s: float) -> int:
    with database.connect() as connection:
        state = read_installed(connection, settings)
        connection.rollback()
        if state.role is not Role.PRIMARY:
            raise Refused(f"this node is a secondary; run this on the primary, {state.primary_name}")
        try:
            return _ask(database, connection, mode, session, full=full, timeout_s=timeout_s)
        except Refused as exc:
            if service_runs(database):
                raise
            raise Refused(
                f"{exc}; it waits for this node's service, which does not run: start it with `stsync run`"
            ) from exc


def _ask(database: Database, connection: Connection, mode: Mode, session: bytes, *, full: bool, timeout_s: float) -> int:
    """What the service does by itself is short, mostly: it is waited for; a verification that is not gives way. Raises Refused."""
    began = time.monotonic()
    while True:
        try:
            wake = database.dialect.wake
            return sessions.ask(connection, mode, full=full, timeout_s=timeout_s, wake=wake, session=session)
        except Refused:
            found = sessions.newest_open(connection)
            connection.rollback()
            waited_s = time.monotonic() - began
            alone = waited_s < _LOOK_S and not service_runs(database)
            if alone or (found is not None and found.cause == sessions.OPERATOR) or waited_s > _PATIENCE_S:
                raise
            if found is not None and found.mode is Mode.VERIFY and waited_s > _GIVES_WAY_S and not found.cancelled:
                sessions.cancel(connection, found.id)
        time.sleep(_LOOK_S)


def _wait(database: Database, reading: Connection, number: int, show: Callable[[Request], None]) -> Request:
    began = time.monotonic()
    look_at, before = began + _BEGIN_S, None
    while True:
        found, now = _read(reading, number), time.monotonic()
        show(found)
        if found.phase.over:
            return found
        if before is not None and found != before:  # so somebody works on it
            look_at = now + _SERVICE_S
        elif now > look_at:
            look_at = now + _SERVICE_S
            if not service_runs(database):
                _gone(database, number)
        before = found
        time.sleep(min(_LOOK_S, max(_FIRST_LOOK_S, _SHARE * (now - began))))


def _gone(database: Database, number: int) -> None:
    """There is nobody to do it: raises Refused where it had not begun, and takes the request back."""
    with database.connect() as connection:
        if sessions.withdraw(connection, number):
            raise Refused("this node's service does not run, so that nothing can be done; start it with `stsync run`")
    raise StsyncError("this node's service has ended, and the session with it; see its log, and ask again")


def _cancel(database: Database, session: bytes) -> str:
    """Call off what was asked for, wherever the interruption came: what has become of it, in a sentence."""
    with database.connect() as connection:
        number = sessions.number_of(connection, session)
        if number is None:
            return "nothing had been asked for"
        found = _read(connection, number)
        if sessions.withdraw(connection, number):
            return _outcome(found)
        if not found.phase.over:
            sessions.cancel(connection, number)
    with database.connect(read_only=True) as reading:
        until = time.monotonic() + _PARTING_S
        while not (found := _read(reading, number)).phase.over and time.monotonic() < until:
            time.sleep(_LOOK_S)
    return _outcome(found)


def _read(reading: Connection, number: int) -> Request:
    found = sessions.read(reading, number)
    reading.rollback()
    if found is None:
        raise StsyncError("the session's row is gone from stsync_sessions; was the database restored?")
    return found


def _watching(*, quiet: bool) -> AbstractContextManager[Callable[[Request], None]]:
    if quiet:
        return nullcontext(_late())
    from publisher.commands import session_view  # noqa: PLC0415 (loads for long; a script has no use for it)

    return session_view.watching()


def _late() -> Callable[[Request], None]:
    """Plain lines, for whoever reads a script's log; none of what is over at once."""
    began, lines = time.monotonic(), None

    def show(request: Request) -> None:
        nonlocal lines
        if lines is None and time.monotonic() - began > _BEGIN_S:
            from publisher.commands import session_view  # noqa: PLC0415 (as above)

            lines = session_view.lines()
        if lines is not None:
            lines(request)

    return show


def _show(done: Request, document: dict[str, Any]) -> None:
    from publisher.commands import session_view  # noqa: PLC0415 (as above)

    session_view.show(done, document)


def _outcome(request: Request) -> str:
    """What became of it, in a sentence."""
    if request.phase is Phase.REQUESTED:
        return f"{request.title} had not begun, and is not asked for any more"
    if not request.phase.over:
        return f"{request.title} goes on; see `stsync status`"
    nodes = ", ".join(f"{node['name']}: {node['result']}" for node in request.progress.get("nodes", []))
    return f"{request.title}; {request.reason or 'it came to its end'}; {nodes or 'no node took part'}"


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
