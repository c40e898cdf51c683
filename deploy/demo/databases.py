"""The nodes' databases as any program sees them: engines, the schema, bulk loading."""

from collections.abc import Iterator
from contextlib import contextmanager
from sqlite3 import Connection as SqliteConnection

from sqlalchemy import Connection, Engine, create_engine, event, insert
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from deploy.demo.data import Rows
from deploy.demo.errors import DemoError
from deploy.demo.schema import metadata

KINDS = ("sqlite", "mariadb", "postgresql")


def engine(url: str) -> Engine:
    """An engine without a pool; on SQLite foreign keys hold and a writer waits its turn, as a program there sees to."""
    made = create_engine(url, poolclass=NullPool)
    if made.dialect.name == "sqlite":
        event.listen(made, "connect", _prepare_sqlite)
    return made


def create_schema(url: str) -> None:
    """Make the configuration tables in an empty database."""
    with reported("make the tables"):
        metadata.create_all(engine(url))


def load(connection: Connection, rows: Rows) -> int:
    """Insert rows in bulk, table by table, within the caller's transaction; returns how many."""
    for table, values in rows.items():
        if values:
            connection.execute(insert(metadata.tables[table]), values)
    return sum(map(len, rows.values()))


@contextmanager
def reported(what: str) -> Iterator[None]:
    """Turn a database error into a sentence."""
    try:
        yield
    except SQLAlchemyError as exc:
        text = str(exc).splitlines()[0]
        raise DemoError(f"could not {what}: {text}") from exc


def _prepare_sqlite(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    if isinstance(connection, SqliteConnection):
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA busy_timeout = 10000")
