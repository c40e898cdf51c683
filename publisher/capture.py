"""Puts the listed tables under capture: bookkeeping tables and triggers, brought in line with the lists (DESIGN §4)."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from sqlalchemy import delete, func, inspect, select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable

from common import capture_check
from common.bookkeeping import LAYOUT, captured, node, outbox, quarantine, rejected, tables_of, taken, waiting
from common.capture_check import Marks
from common.catalog import listed_tables
from common.changes import GENESIS
from common.database import Database
from common.dialects.base import Dialect, run
from common.nodestate import Role, State, mark_installed, refuse_anothers, unlike
from common.schema import ListedTable
from common.settings import Settings

_NAMED = 5


@dataclass(frozen=True)
class Plan:
    """What `install` would run: statements outside a transaction, then those inside one; and what was lost without (`faults`)."""

    prepare: tuple[str, ...]
    statements: tuple[str, ...]
    listed: Mapping[str, ListedTable]
    marks: Mapping[str, Marks]
    faults: tuple[str, ...] = ()
    changed: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()

    @property
    def sql(self) -> str:
        """All of it, as a person reads it."""
        return "\n".join(f"{statement};" for statement in (*self.prepare, *self.statements))


def plan(database: Database, connection: Connection, settings: Settings) -> Plan:
    """What has to be run so that exactly the listed tables are captured; nothing when all is in line. Raises Misconfigured, also where
    the database is another node's."""
    refuse_anothers(connection, settings)
    dialect = database.dialect
    listed = listed_tables(database, connection, settings)
    wanted = {trigger.name: trigger for table in listed.values() for trigger in dialect.triggers(table)}
    marks = capture_check.wanted(dialect, listed)
    installed = inspect(connection).has_table(captured.name)
    known = capture_check.known(connection) if installed else {}
    faults = capture_check.faults(database, connection, settings) if known else []
    shown = capture_check.standing(dialect, connection)
    changed = {
        name
        for name, table in listed.items()
        if table.table.overtaken or known.get(name) != replace(marks[name], standing=shown.get(name, ""))
    }
    statements = list(_missing_tables(dialect, connection))
    unwanted = [trigger for trigger in dialect.installed(connection) if trigger.name not in wanted]
    statements += [one for trigger in unwanted for one in trigger.drop]
    for trigger in wanted.values():
        if trigger.table in changed:  # all of a table's: the order in which they are made may matter
            statements += trigger.create
    dropped = frozenset(trigger.table for trigger in unwanted)
    return Plan(
        tuple(dialect.prepare(connection)),
        tuple(statements),
        listed,
        marks,
        tuple(faults),
        frozenset(changed) - dropped,
        dropped,
    )


def install(database: Database, settings: Settings) -> Plan:
    """Bring the database in line with the lists; safe to repeat.

    Raises Misconfigured, Unavailable; Refused when a table cannot be had because another transaction holds it.
    """
    with database.connect() as connection, _objections(database, connection):
        what = plan(database, connection, settings)
        connection.rollback()
        _outside_transaction(connection, what.prepare)
        database.dialect.claim(connection, what.changed, what.dropped)
        for statement in what.statements:
            run(connection, statement)
        _register_node(connection, settings, what)
        mark_installed(connection)
        connection.execute(delete(captured))
        shown = capture_check.standing(database.dialect, connection)
        for name, marks in what.marks.items():
            connection.execute(captured.insert().values(table_name=name, **asdict(replace(marks, standing=shown[name]))))
        connection.commit()
    return what


def unfinished(connection: Connection) -> list[str]:
    """Sentences about what `uninstall` throws away that has not reached its end."""
    existing = set(inspect(connection).get_table_names())
    found = []
    for table, what in (
        (outbox, "changes that were not sent to any node yet"),
        (quarantine, "changes that wait in the quarantine"),
        (rejected, "outbox rows that were no valid change"),
    ):
        if table.name not in existing:
            continue
        if table is outbox and taken.name in existing:
            count = waiting(connection)
        else:
            count = connection.execute(select(func.count()).select_from(table)).scalar_one()
        if count:
            found.append(f"thrown away: {count} {what}")
    return found


def uninstall(database: Database) -> list[str]:
    """Remove the triggers and the bookkeeping tables; the statements that were run."""
    with database.connect() as connection, _objections(database, connection):
        standing = database.dialect.installed(connection)
        statements = [one for trigger in standing for one in trigger.drop]
        existing = set(inspect(connection).get_table_names())
        statements += [
            f"DROP TABLE {database.dialect.quote(t.name)}"
            for t in reversed(tables_of(database.dialect.name))
            if t.name in existing
        ]
        connection.rollback()
        database.dialect.claim(connection, (), {trigger.table for trigger in standing})
        for statement in statements:
            run(connection, statement)
        connection.commit()
    return statements


@contextmanager
def _objections(database: Database, connection: Connection) -> Iterator[None]:
    """What the administrator can do something about is told as that."""
    try:
        yield
    except DBAPIError as exc:
        found = database.dialect.objection(connection, exc.orig or exc)
        if found is None:
            raise
        raise found from exc


def _doubt(layout: str, what: Plan) -> str | None:
    """Why the nodes have to be compared after this, as a clause; None where nothing changed."""
    names = sorted(what.changed | what.dropped)
    tables = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    if layout != LAYOUT:
        return f"it was upgraded (from {layout} to {LAYOUT})"
    return (
        f"the schema of {tables} changed, or the triggers or their lines in the list, before `stsync install`"
        if tables
        else None
    )


def _missing_tables(dialect: Dialect, connection: Connection) -> Iterable[str]:
    look = inspect(connection)
    existing = set(look.get_table_names())
    for table in tables_of(connection.dialect.name):
        if table.name not in existing:
            yield str(CreateTable(table).compile(connection)).strip()
            for index in table.indexes:
                yield str(CreateIndex(index).compile(connection)).strip()
            yield from dialect.storage(table.name)
            continue
        here = {column["name"] for column in look.get_columns(table.name)}
        for column in table.columns:
            if column.name not in here:  # an older version made the table
                yield f"ALTER TABLE {table.name} ADD COLUMN {str(CreateColumn(column).compile(connection)).strip()}"
        named = {index["name"] for index in look.get_indexes(table.name)}
        for index in table.indexes:
            if index.name not in named:
                yield str(CreateIndex(index).compile(connection)).strip()


def _outside_transaction(connection: Connection, statements: Iterable[str]) -> None:
    for statement in statements:
        driver = connection.connection.cursor()
        driver.execute(statement)
        driver.close()


def _register_node(connection: Connection, settings: Settings, what: Plan) -> None:
    row = connection.execute(select(node.c.version, node.c.doubt)).first()
    if row is not None:
        doubt = _doubt(row.version, what)
        if doubt is not None:
            known = row.doubt if unlike(row.doubt) else doubt
            connection.execute(node.update().values(version=LAYOUT, proven_ms=None, doubt=known))
        return
    first = settings.cluster.names[0]
    connection.execute(
        node.insert().values(
            id=1,
            name=settings.node.name,
            cluster=settings.cluster.name,
            role=Role.PRIMARY if settings.node.name == first else Role.SECONDARY,
            primary_name=first,
            epoch=1,
            sequence=0,
            hash=GENESIS,
            published=0,
            head_epoch=1,
            head_sequence=0,
            state=State.CATCHING_UP,
            numbered=0,
            heard_ms=0,
            heard_number=0,
            installed_ms=0,
            version=LAYOUT,
        )
    )
