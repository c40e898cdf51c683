"""The listed tables as the service uses them, read again when the list changes (TRAPS 6)."""

import threading
from collections.abc import Mapping
from typing import NamedTuple

import structlog
from sqlalchemy import select

from common import nodestate
from common.bookkeeping import captured
from common.catalog import listed_tables
from common.database import Database
from common.errors import Misconfigured, Unavailable
from common.lists import TABLES_FILE
from common.logs import Seldom
from common.schema import ListedTable
from common.settings import Settings


class Lists(NamedTuple):
    """The listed tables by name, and which run of `install` the schema was read after (nodestate.NodeState.installed_ms)."""

    tables: Mapping[str, ListedTable]
    installed_ms: int


class LiveLists:
    """Holds the present lists; `refresh` looks whether the file changed. Safe to read from any thread.

    A listed table that goes while they are held stays as it was (see catalog.listed_tables): changes of it can then not be applied,
    and wait for its return.

    Whoever writes by them says in the same transaction which they were (nodestate.advance): after `install` has run nothing is
    captured or replayed by the schema as it was before.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._path = settings.node.home / TABLES_FILE
        self._lock = threading.Lock()
        self._log = structlog.get_logger("lists")
        self._told = Seldom()
        self._seen: tuple[int, int] | None = None
        self.present = Lists({}, 0)
        self.generation = 0

    @property
    def tables(self) -> Mapping[str, ListedTable]:
        """The listed tables by name."""
        return self.present.tables

    def load(self) -> None:
        """Read list and schema; raises Misconfigured."""
        with self._lock, self._database.connect(read_only=True) as connection:
            self._seen = self._stamp()
            installed_ms = nodestate.installed_ms(connection)  # first: what is installed meanwhile is then found out
            anew = installed_ms != self.present.installed_ms
            tables = listed_tables(self._database, connection, self._settings, self.tables, anew=anew)
            present = Lists(tables, installed_ms)
            if present != self.present:
                self.present = present
                self.generation += 1
            self._told = Seldom()
            connection.rollback()

    def as_they_are(self) -> Lists:
        """The tables of the present lists as the database has them now, and which run of `install` that is after; where the list does
        not fit them any more, the present ones. `present` stays as it is: it says by what schema changes were captured.
        """
        with self._database.connect(read_only=True) as connection:
            installed_ms = nodestate.installed_ms(connection)
            try:
                anew = installed_ms != self.present.installed_ms
                found = listed_tables(self._database, connection, self._settings, self.tables, anew=anew)
            except Misconfigured:
                connection.rollback()
                return self.present
            connection.rollback()
        if anew:
            return Lists(found, installed_ms)
        return Lists({name: found.get(name, table) for name, table in self.tables.items()}, installed_ms)

    def follow(self, installed_ms: int) -> None:
        """Read again if `install` has run since."""
        if self.present.installed_ms != installed_ms and self.reread():
            self._log.info("lists_read", tables=len(self.tables))

    def refresh(self) -> None:
        """Read again if the list's file changed; a faulty list is reported and the former one stays in force."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        if self.reread():
            self._log.info("lists_read", tables=len(self.tables))
            self._warn_if_not_installed()

    def reread(self) -> bool:
        """Read list and schema again; where they are faulty that is reported and the former ones stay in force."""
        try:
            self.load()
        except Misconfigured as exc:
            if self._told.due(str(exc)):
                self._log.error("lists_faulty", reason=str(exc), effect="the former lists stay in force")
            return False
        except Unavailable as exc:
            self._seen = None  # so that the next look reads them
            self._log.warning("unavailable", thread="main", reason=str(exc))
            return False
        return True

    def _warn_if_not_installed(self) -> None:
        with self._database.connect(read_only=True) as connection:
            known = {row.table_name for row in connection.execute(select(captured.c.table_name))}
            connection.rollback()
        if known != set(self.tables):
            self._log.warning(
                "lists_not_installed",
                remedy="run `stsync install` to bring the triggers in line with the lists",
            )

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:  # gone, or not ours to look at: reading it says which
            return None
        return found.st_mtime_ns, found.st_size
