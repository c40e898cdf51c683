"""`stsync run`: this node's service in the foreground, by its present role."""

import time
from importlib.metadata import entry_points

import structlog
import typer
from sqlalchemy.engine import Connection

from common import logs, nodestate, runtime
from common.commands.options import ConfigOption
from common.database import Database
from common.errors import Fault, Refused
from common.settings import load_settings
from common.stop import Stop

SERVICES_GROUP = "stsync.services"
_LOCK_PATIENCE_S = 3.0


def register(app: typer.Typer) -> None:
    """Add `run`."""
    app.command("run")(run)


def run(config: ConfigOption = None) -> None:
    """Run this node's service in the foreground, by its present role, until SIGTERM or SIGINT."""
    settings = load_settings(config)
    logs.configure(settings.log, node=settings.node.name)
    stop = Stop()
    stop.on_signals()
    database = Database(settings.database)
    with database.connect() as connection:
        _lock(database, connection, stop)
        state = nodestate.read_installed(connection, settings)
        connection.rollback()
        what = runtime.build(settings, database, state, stop)
        service = _service(state.role)
        structlog.get_logger("run").info("starting", role=str(state.role), database=database.address)
        service(what)


def _lock(database: Database, connection: Connection, stop: Stop) -> None:
    """Take the service's lock; `status` takes it for a moment to see whether it is free, so one refusal proves nothing."""
    until = time.monotonic() + _LOCK_PATIENCE_S
    while not database.dialect.lock(connection):
        if time.monotonic() > until or stop.wait(0.1):
            raise Refused(f"another `stsync run` works on database {database.address}; stop it first")


def _service(role: str) -> runtime.Service:
    for point in entry_points(group=SERVICES_GROUP):
        if point.name == role:
            found: runtime.Service = point.load()
            return found
    raise Fault(f"no service is registered for the role {role!r}; is stsync installed completely?")
