"""Temporary tables that an installation works with, and the SQL over them that all databases share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from common.dialects.base import Dialect
from common.dialects.json_writer import columns_for, written
from common.errors import NotApplicable
from common.schema import ForeignKey, ListedTable

_IN_THE_WAY = (
    "table {table}: {reason}: what the primary has cannot be written; a row of this node outside the row filter is in the way, or a "
    "constraint of this node that the primary has not; remove it, and synchronize again"
)
Portions = Callable[[], Iterator[tuple[int, str]]]


@dataclass(frozen=True)
class Difference:
    """What makes one table equal: rows as in changes.Frame.rows, in portions (number, text); each may be read more than once.

    `columns`: of updates and inserts, the key's first. `deletes`: the keys of rows here that the primary lacks; `updates`: rows whose
    key is here to the byte, and which differ; `inserts`: rows whose key is not here.
    """

    table: ListedTable
    columns: tuple[str, ...]
    deletes: Portions
    updates: Portions
    inserts: Portions


@dataclass(frozen=True)
class Written:
    """How many rows of a table an installation made equal."""

    inserted: int
    updated: int
    deleted: int


def anything(portions: Portions) -> bool:
    """Whether there is a row in them."""
    return next(portions(), None) is not None


def not_taken(table: ListedTable, missing: int, total: int) -> NotApplicable:
    """Of the rows that should have been written so many were not."""
    return NotApplicable(
        f"{missing} of {total} rows of table {table.name} were not taken: outside the row filter of this node, longer or larger than "
        "its columns hold, or a local row outside of the filter has the same key; make the filters and schemas of the nodes equal, or "
        "remove such local rows, and synchronize again"
    )


class Scratch:
    """Makes, fills and removes temporary tables in the caller's transaction; and runs statements without parameters on its connection,
    whose errors, where the caller has made a `savepoint`, come out as ours."""

    def __init__(self, dialect: Dialect, connection: Connection) -> None:
        self.dialect = dialect
        self.connection = connection
        self.quote = dialect.quote
        self._made: list[str] = []

    def run(self, statement: str) -> int:
        """The number of rows that it wrote."""
        with closing(self.connection.connection.cursor()) as cursor:
            cursor.execute(statement)
            return int(cursor.rowcount)

    def numbers(self, statement: str) -> list[int]:
        """The first row that it returns; nothing where there is none."""
        with closing(self.connection.connection.cursor()) as cursor:
            cursor.execute(statement)
            return [int(value) for value in cursor.fetchone() or ()]

    def exists(self, source: str) -> bool:
        """Whether there is a row in this (SQL that follows FROM)."""
        return self.numbers(f"SELECT 1 FROM {source} LIMIT 1") != []

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """A driver's exception inside comes out as ours; NotApplicable rolls back to here."""
        nested = self.connection.begin_nested()
        try:
            with self.translated():
                yield
        except NotApplicable:
            nested.rollback()
            raise
        nested.commit()

    @contextmanager
    def translated(self, table: str = "") -> Iterator[None]:
        """A driver's exception inside comes out as ours, and NotApplicable names the table that is written."""
        errors: tuple[type[BaseException], ...] = (*self.dialect.errors, DBAPIError)
        try:
            yield
        except errors as exc:
            error = self.dialect.translate(getattr(exc, "orig", None) or exc)
            if table and isinstance(error, NotApplicable):
                error = NotApplicable(_IN_THE_WAY.format(table=table, reason=error))
            raise error from exc

    def make(self, what: str, table: str, columns: Mapping[str, str], index: Sequence[str] = ()) -> str:
        """A new one, empty: its name. `columns`: the names of columns there by those that they have here; of a table given as SQL."""
        name = f"stsync_{what}_{len(self._made)}"
        for statement in self.dialect.scratch(self.connection, name, table, columns, index):
            self.run(statement)
        self._made.append(name)
        return name

    def drop(self) -> None:
        """Remove all, where neither commit nor rollback does."""
        for name in self._made if self.dialect.drop_scratch else ():
            self.run(f"{self.dialect.drop_scratch} {self.quote(name)}")
        self._made.clear()

    def stage_keys(self, one: Difference) -> str:
        """A temporary table with the keys of the rows that are to go."""
        keys = [column.name for column in one.table.key]
        name = self.make("gone", self.quote(one.table.name), dict(zip(keys, keys, strict=True)), keys)
        self._fill(one.table, name, keys, one.deletes)
        return name

    def stage_rows(self, one: Difference, portions: Portions) -> str:
        """A temporary table with these rows: of the columns that are written here. NotApplicable where the row filter takes some
        of them for none of its own."""
        names = self.written(one)
        keys = [column.name for column in one.table.key]
        name = self.make("put", self.quote(one.table.name), dict(zip(names, names, strict=True)), keys)
        taken, total = self._fill(one.table, name, one.columns, portions)
        if taken != total:
            raise not_taken(one.table, total - taken, total)
        return name

    def _fill(self, table: ListedTable, name: str, columns: Sequence[str], portions: Portions) -> tuple[int, int]:
        where = table.where if len(columns) > len(table.key) else None  # of a row's key alone the filter knows nothing
        writer = self.dialect.writer(replace(table, table=replace(table.table, name=name), where=where), columns)
        taken = total = 0
        with closing(self.connection.connection.cursor()) as cursor:
            for count, rows in portions():
                taken += writer.insert(cursor, rows)
                total += count
        return taken, total

    def written(self, one: Difference) -> list[str]:
        """The columns whose values are written here, those of the key first."""
        return [column.name for _, column in written(one.table, columns_for(one.table, one.columns))]

    def names(self, columns: Sequence[str], source: str = "") -> str:
        """Columns as SQL, of a source if one is given."""
        return ", ".join(f"{source}.{self.quote(name)}" if source else self.quote(name) for name in columns)

    def match(self, left: str, right: str, columns: Sequence[str], others: Sequence[str] | None = None) -> str:
        """SQL: rows of two sources have equal values there; compared as the left one's columns are."""
        pairs = zip(columns, others if others is not None else columns, strict=True)
        return " AND ".join(f"{left}.{self.quote(one)} = {right}.{self.quote(other)}" for one, other in pairs)

    def inside(self, table: ListedTable, columns: Sequence[str], *, local: bool = False, source: str = "") -> str:
        """SQL for a source: these columns of the table's rows inside the row filter; or of the local ones, outside of it."""
        source = source or self.quote(table.name)
        if table.where is None:
            return f"(SELECT {self.names(columns)} FROM {source}{' WHERE 1 = 0' if local else ''})"
        where = f"NOT COALESCE(({table.where}), 1 = 0)" if local else f"({table.where})"
        return f"(SELECT {self.names(columns)} FROM {source} WHERE {where})"

    def filtered(self, table: ListedTable, alias: str) -> str:
        """SQL that goes on with AND: the row of the table that has this alias is inside the row filter, whatever else has its
        columns' names."""
        if table.where is None:
            return ""
        key = key_of(table)
        return f" AND EXISTS (SELECT 1 FROM {self.inside(table, key)} f WHERE {self.match('f', alias, key)})"

    def child(self, key: ForeignKey) -> str:
        """The table that has this foreign key, as SQL."""
        return f"{self.quote(key.schema)}.{self.quote(key.child)}" if key.schema else self.quote(key.child)


def key_of(table: ListedTable) -> list[str]:
    """The names of the key's columns."""
    return [column.name for column in table.key]


def plain_columns(table: ListedTable) -> list[str]:
    """The names of all columns that are not computed, excluded ones too."""
    return [column.name for column in table.table.columns if not column.generated]
