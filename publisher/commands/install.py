"""`stsync install` and `stsync uninstall`: capture in this node's database."""

from typing import Annotated

import typer

from common import running
from common.commands.options import ConfigOption
from common.database import Database
from common.errors import Refused
from common.settings import load_settings
from publisher import capture


def register(app: typer.Typer) -> None:
    """Add `install`."""
    app.command("install")(install)


def register_uninstall(app: typer.Typer) -> None:
    """Add `uninstall`."""
    app.command("uninstall")(uninstall)


def install(
    config: ConfigOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL, change nothing.")] = False,
) -> None:
    """Create the bookkeeping tables and the triggers of the listed tables; safe to repeat, brings them in line with the lists."""
    settings = load_settings(config)
    database = Database(settings.database)
    if dry_run:
        with database.connect(read_only=True) as connection:
            found = capture.plan(database, connection, settings)
        typer.echo(found.sql or "-- nothing to do: everything is in line with the lists")
        return
    done = capture.install(database, settings)
    tables = f"{len(done.listed)} tables under capture in {database.address}"
    typer.echo(f"{tables}: {', '.join(done.listed) or 'none'}")
    for fault in done.faults:
        typer.echo(f"until now: {fault}", err=True)
    for table in done.listed.values():
        for trigger in table.table.triggers:
            if not trigger.minds_replay:
                typer.echo(
                    f"table {table.name}: trigger {trigger.name} is not stsync's and will also run when changes are applied on a "
                    f"secondary; where that is wrong, let it do nothing while {database.dialect.replay_mark}",
                    err=True,
                )
    if not done.listed:
        typer.echo("nothing is synchronized: the list selects no table", err=True)


def uninstall(config: ConfigOption = None) -> None:
    """Remove the triggers and the bookkeeping tables, with the position and the journal."""
    settings = load_settings(config)
    database = Database(settings.database)
    with database.connect() as connection:
        if not running.lock(database, connection):
            raise Refused(f"`stsync run` works on database {database.address}; stop it first")
        lost = capture.unfinished(connection)
        connection.rollback()
        statements = capture.uninstall(database)
    for told in lost:
        typer.echo(told, err=True)
    typer.echo(f"removed from {database.address}: {len(statements)} triggers, functions and tables")
