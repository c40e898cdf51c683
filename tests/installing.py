"""Two databases that are to become equal: their differences, read row by row, and the installation of these."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.pool import NullPool

from common.catalog import listed_tables
from common.changes import SEPARATOR
from common.schema import ListedTable
from consumer.install import run
from consumer.scratch import Difference, Portions, Written
from deploy.servers import PrivatePostgreSQL
from tests.harness import Cluster, Node

OFF = {"mariadb": "SET foreign_key_checks = 0", "postgresql": "SET session_replication_role = replica"}


@contextmanager
def right(server: PrivatePostgreSQL) -> Iterator[None]:
    """PostgreSQL: the nodes' user may switch foreign keys off, as only a superuser may otherwise."""
    engine = create_engine(server.admin_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as link:
        link.execute(text(f"GRANT SET ON PARAMETER session_replication_role TO {server.user}"))
        yield
        link.execute(text(f"REVOKE SET ON PARAMETER session_replication_role FROM {server.user}"))


def portions(rows: Sequence[str], size: int) -> Portions:
    def read() -> Iterator[tuple[int, str]]:
        for begin in range(0, len(rows), size):
            some = rows[begin : begin + size]
            yield len(some), SEPARATOR.join(some)

    return read


@dataclass
class Pair:
    """A primary and a secondary. `admin`: the address of PostgreSQL's superuser."""

    cluster: Cluster
    admin: str | None = None

    @property
    def primary(self) -> Node:
        return self.cluster.primary

    @property
    def secondary(self) -> Node:
        return self.cluster.nodes["st2"]

    def blindly(self, node: Node, *statements: str) -> None:
        """As a program that has foreign keys switched off."""
        url: URL = node.engine.url
        if self.cluster.kind == "sqlite":
            link = sqlite3.connect(str(url.database))
            with link:
                for statement in statements:
                    link.execute(statement)
            link.close()
            return
        if self.admin is not None:
            url = make_url(self.admin).set(database=url.database)
        engine = create_engine(url, poolclass=NullPool)
        with engine.begin() as connection:
            for statement in (OFF[self.cluster.kind], *statements):
                connection.execute(text(statement))

    def on_both(self, *statements: str) -> None:
        self.blindly(self.primary, *statements)
        self.blindly(self.secondary, *statements)

    def differences(self, size: int = 3) -> list[Difference]:
        """What makes the secondary equal, in portions of so many rows."""
        there, here = _read(self.primary), _read(self.secondary)
        found = []
        for name, (table, rows) in here.items():
            wanted = there[name][1]
            gone = [key for key in rows if key not in wanted]
            updates = [row for key, row in wanted.items() if key in rows and rows[key] != row]
            inserts = [row for key, row in wanted.items() if key not in rows]
            columns = tuple(column.name for column in table.columns)
            found.append(Difference(table, columns, *(portions(some, size) for some in (gone, updates, inserts))))
        return found

    def install(
        self, finish: Callable[[Connection], None] = lambda _: None, *, order: Callable[[list[Any]], list[Any]] = list
    ) -> dict[str, Written]:
        database = self.secondary.database
        with self.session() as (connection, listed):
            return run(database, connection, order(self.differences()), listed, lambda _in_place: finish(connection))

    @contextmanager
    def session(self) -> Iterator[tuple[Connection, dict[str, ListedTable]]]:
        """A connection of the secondary that replays, and its tables."""
        database, settings = self.secondary.database, self.secondary.settings
        with database.connect() as connection:
            database.dialect.mark_session(connection)
            listed = listed_tables(database, connection, settings)
            connection.rollback()
            yield connection, listed


def _read(node: Node) -> dict[str, tuple[ListedTable, dict[str, str]]]:
    database, dialect = node.database, node.database.dialect
    found = {}
    with database.connect(read_only=True) as connection:
        for name, table in listed_tables(database, connection, node.settings).items():
            key, row = (dialect.row([(dialect.quote(c.name), c) for c in some]) for some in (table.key, table.columns))
            where = f" WHERE ({table.where})" if table.where else ""
            rows = connection.exec_driver_sql(
                f"SELECT {key}, {row} FROM {dialect.quote(name)}{where}", execution_options={"no_parameters": True}
            )
            found[name] = (table, {str(one): str(other) for one, other in rows})
    return found


__all__ = ["Pair", "portions", "right"]
