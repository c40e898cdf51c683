"""`stsync run`: this node's service in the foreground, by its present role."""

import gc
from importlib.metadata import entry_points

import structlog
import typer

from common import logs, nodestate, runtime
from common.commands.options import ConfigOption
from common.database import Database
from common.errors import Fault
from common.service_lock import ServiceLock
from common.settings import load_settings
from common.stop import Stop

SERVICES_GROUP = "stsync.services"


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
    lock = ServiceLock(database, stop)
    lock.take()
    try:
        with database.connect(read_only=True) as connection:
            state = nodestate.read_installed(connection, settings)
            connection.rollback()
        what = runtime.build(settings, database, state, stop, lock)
        service = _service(state.role)
        structlog.get_logger("run").info("starting", role=str(state.role), database=database.address)
        gc.freeze()  # what is there by now stays: a look through all of it stopped a service for 25 to 60 ms
        service(what)
    finally:
        lock.release()


def _service(role: str) -> runtime.Service:
    for point in entry_points(group=SERVICES_GROUP):
        if point.name == role:
            found: runtime.Service = point.load()
            return found
    raise Fault(f"no service is registered for the role {role!r}; is stsync installed completely?")
