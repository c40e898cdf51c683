"""The lock by which only one `stsync run` works on a database: taken before anything else, kept while the service lives."""

import threading
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
        self._talking = threading.Lock()

    def take(self) -> None:
        """Take it; Refused when another service has it, Unavailable when the database cannot be reached.

        `status` takes the lock for a moment to see whether it is free, so one refusal proves nothing.
        """
        self._connection = self._database.open(read_only=True)
        until = time.monotonic() + _PATIENCE_S
        while not self._try(self._connection):
            if self._stop.wait(0.1):
                return
            if time.monotonic() > until:
                self._drop()
                raise Refused(f"another `stsync run` works on database {self._database.address}; stop it first")

    def loop(self) -> None:
        """Keep it until stop; in a thread of its own, for a silent database answers late. Refused when another service took it."""
        while not self._stop.wait(1.0):
            with self._talking:
                self._keep()

    def release(self) -> None:
        """Give it back; where its thread still waits for the database, the end of the process does."""
        if self._talking.acquire(blocking=False):
            self._drop()
            self._talking.release()

    def _keep(self) -> None:
        """Make sure that it is still held."""
        try:
            if self._connection is None:
                self.take()
                if not self._stop.is_set():
                    self._log.info("lock_taken_again")
                return
            with self._database.guard():
                self._connection.exec_driver_sql("SELECT 1")
                self._connection.rollback()
            self._database.dialect.check(self._connection)
        except Unavailable as exc:
            if self._connection is not None:
                self._log.warning("lock_lost", reason=str(exc), next="taken again as soon as the database answers")
            self._drop()

    def _try(self, connection: Connection) -> bool:
        try:
            with self._database.guard():
                return self._database.dialect.lock(connection)
        except Unavailable:
            self._drop()
            raise

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()
