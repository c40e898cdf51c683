"""An installation that begins while the rows are still on their way (DESIGN §8, step 4): of tables that are empty here, all that comes
is put in, whatever comes later. It ends when all has come, in one transaction as any other; before, nobody sees any of it."""

import threading
from collections.abc import Callable, Mapping

import structlog
from sqlalchemy.engine import Connection

from common.errors import StsyncError
from consumer.scratch import Written
from consumer.spool import Spool, SpoolClosedError

Installed = Mapping[str, Written]


class Streaming:
    """Runs `install` in a thread of its own; it reads from the spool, which makes it wait, and calls `wait_for_all` before its end."""

    def __init__(self, spool: Spool, install: Callable[[], Installed]) -> None:
        self._spool = spool
        self._install = install
        self._installed: Installed | None = None
        self._ends = False
        self._failed: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="stsync-installing", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._installed = self._install()
        except SpoolClosedError:
            pass  # nobody waits for it any more, and the session's end has been told
        except (StsyncError, OSError, UnicodeError) as exc:
            if self._ends:
                self._failed = exc
            else:
                structlog.get_logger("session").info("installation_waits_for_all_rows", reason=str(exc))

    def wait_for_all(self, connection: Connection) -> None:
        """Until all is there, and the connection that installs is seen to live; what goes wrong from then on has gone wrong for good.
        Raises SpoolClosedError, and what the driver does."""
        self._spool.wait_for_all()
        connection.exec_driver_sql("SELECT 1")
        self._ends = True

    def finish(self) -> Installed:
        """The spool has all: how it ended. What went wrong before the end may be over by now: it is then done anew. Raises as
        `install` does."""
        self._thread.join()
        if self._failed is not None:
            raise self._failed
        return self._install() if self._installed is None else self._installed

    def join(self) -> None:
        """The spool is closed: return when nothing is written any more."""
        self._thread.join()
