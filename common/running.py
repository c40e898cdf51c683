"""Whether this node's service runs: it holds a lock of the database as long as it lives (common.service_lock)."""

import random
import time
from typing import Final

from sqlalchemy.engine import Connection

from common.database import Database

_LOOKS: Final = 4
_BETWEEN_S: Final = (0.02, 0.06)


def lock(database: Database, connection: Connection) -> bool:
    """Take it, as long as this connection lives; False where a service has it. One refusal proves nothing: who only looks whether it
    is free takes it for a moment, too."""
    for _ in range(_LOOKS):
        if database.dialect.lock(connection):
            return True
        time.sleep(random.uniform(*_BETWEEN_S))  # noqa: S311 (so that two who look do not go on in step)
    return False


def service_runs(database: Database) -> bool:
    """Whether `stsync run` works on this database now."""
    connection = database.open()
    try:
        with database.guard():
            return not lock(database, connection)
    finally:
        connection.close()
