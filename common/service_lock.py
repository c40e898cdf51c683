"""The lock by which only one `stsync run` works on a database: taken before anything else, kept while the service lives."""

import time

import structlog
from sqlalchemy.engine import Connection

from common.database import Database
from common.errors import Refused, Unavailable
from common.stop import Stop

_PATIENCE_S = 3.0


class ServiceLock:
    """Taken by the process's main thread, then owned by the thread of `loop`. The database holds it as long as a connection of
    its own lives: when that connection dies (a restarted server, an idle connection cut off) the lock is taken anew. What the
    service does meanwhile harms nothing, should another one have taken it: positions only move from where each believed them
    (`nodestate.advance`)."""

    def __init__(self, database: Database, stop: Stop) -> None:
        self._database = database
        self._stop = stop
        self._log = structlog.get_logger("service_lock")
        self._connection: Connection | None = None

    def take(self) -> None:
        """Take it; Refused when another service has it, Unavailable when the database cannot be reached.

        `status` takes the lock for a moment to see whether it is free, so one refusal proves nothing.
        """
        self._connection = self._database.open(read_only=True)
        until = time.monotonic() + _PATIENCE_S
        while not self._try(self._connection):
            if time.monotonic() > until or self._stop.wait(0.1):
                self.release()
                raise Refused(f"another `stsync run` works on database {self._database.address}; stop it first")

    def loop(self) -> None:
        """Keep it until stop; in a thread of its own, for a silent database answers late. Refused when another service took it."""
        while not self._stop.wait(1.0):
            self.keep()

    def keep(self) -> None:
        """Make sure that it is still held; Refused when another service took it meanwhile."""
        try:
            if self._connection is None:
                self.take()
                self._log.info("lock_taken_again")
                return
            with self._database.guard():
                self._connection.exec_driver_sql("SELECT 1")
                self._connection.rollback()
        except Unavailable as exc:
            if self._connection is not None:
                self._log.warning("lock_lost", reason=str(exc), next="taken again as soon as the database answers")
            self.release()

    def _try(self, connection: Connection) -> bool:
        try:
            with self._database.guard():
                return self._database.dialect.lock(connection)
        except Unavailable:
            self.release()
            raise

    def release(self) -> None:
        """Give it back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()
