"""The SQL that PostgreSQL and MariaDB share for replaying whole frames, and the values in these."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from common.changes import SEPARATOR
from common.dialects.base import Cursor
from common.errors import NotApplicable
from common.schema import Column, ListedTable


class JsonNumber(str):
    """A JSON number, kept as it was written."""

    __slots__ = ()


_SURROGATE = re.compile("[\ud800-\udfff]")


def json_text(value: Any, *, true: str, false: str) -> str:
    """What the dialects' `json_value` have in common; numbers become strings, which every type reads."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return true if value else false
    if not isinstance(value, str):
        raise NotApplicable("a value is neither a string, a number, true, false nor null")
    if _SURROGATE.search(value):
        raise NotApplicable("a string holds half of a surrogate pair, which is no character")
    return json.dumps(value, ensure_ascii=False)


def columns_for(table: ListedTable, names: Sequence[str]) -> list[Column]:
    """The table's columns that a frame names; NotApplicable where the schema here differs from the sender's."""
    found = []
    for name in names:
        column = table.table.column(name)
        if column is None:
            raise NotApplicable(f"table {table.name} has no column {name} on this node: the schemas differ")
        found.append(column)
    key = [column.name for column in table.key]
    if [column.name for column in found[: len(key)]] != key:
        raise NotApplicable(f"the primary key of table {table.name} is ({', '.join(key)}) on this node: the schemas differ")
    return found


def written(table: ListedTable, columns: Sequence[Column]) -> list[tuple[int, Column]]:
    """Which of a frame's values are written here, with their place in the row: not excluded or computed ones (TRAPS 32)."""
    return [(i, c) for i, c in enumerate(columns) if c.name not in table.exclude and not c.generated]


Quote = Callable[[str], str]
_PLACE = Column("stsync_place", "bigint")


class JsonWriter:
    """Replays frames with one statement each, the rows handed over as one JSON parameter.

    Subclasses give `source` (JSON text → a row set with the columns' own names and types) and the two statements whose
    syntax differs between the databases. Both sides of the row filter are enforced: rows that arrive and rows that stand here.
    """

    def __init__(self, table: ListedTable, names: Sequence[str], quote: Quote) -> None:
        self.table = table
        self.quote: Quote = lambda name: quote(name).replace("%", "%%")  # the drivers' own placeholder is %s
        self.where = (table.where or "").replace("%", "%%")
        self.columns = columns_for(table, names)
        self.keys = list(table.key)
        self.places = written(table, self.columns)
        self.target = self.quote(table.name)
        self._insert = self._insert_sql()
        self._missing = self._insert_sql() + self._absent()
        self._update = self.update_sql()
        self._delete = self.delete_sql()
        self._rekey = self.rekey_sql()

    def insert(self, cursor: Cursor, rows: str) -> int:
        """See TableWriter."""
        return self.execute(cursor, self._insert, rows)

    def update(self, cursor: Cursor, rows: str) -> int:
        """See TableWriter."""
        return self.execute(cursor, self._update, rows)

    def insert_missing(self, cursor: Cursor, rows: str) -> int:
        """See TableWriter."""
        return self.execute(cursor, self._missing, rows)

    def delete(self, cursor: Cursor, keys: str) -> int:
        """See TableWriter."""
        return self.execute(cursor, self._delete, keys)

    def rekey(self, cursor: Cursor, row: str) -> int:
        """See TableWriter."""
        return self.execute(cursor, self._rekey, row)

    def respell(self, cursor: Cursor, rows: str) -> int:
        """See TableWriter."""
        free = [(i, c) for i, c in enumerate(self.keys) if c.equality != "exact" and not c.fixed]
        return self.execute(cursor, self.respell_sql(free), rows) if free else 0

    def respell_sql(self, free: Sequence[tuple[int, Column]]) -> str:
        """The UPDATE that sets these columns of the key, with their place in the row, where they differ to the byte."""
        raise NotImplementedError

    def alike(self, cursor: Any, keys: Sequence[str]) -> Sequence[int | None]:
        """See TableWriter."""
        self.execute(cursor, self.alike_sql(), SEPARATOR.join(f'[{key},"{place}"]' for place, key in enumerate(keys)))
        found = {int(place): int(number) for place, number in cursor.fetchall()}
        return [found.get(place) for place in range(len(keys))]

    def execute(self, cursor: Cursor, statement: str, rows: str) -> int:
        """Run one of the statements with these rows; the number of rows it found or wrote."""
        cursor.execute(statement, (f"[{rows}]",))
        return cursor.rowcount

    def source(self, columns: Iterable[tuple[int, Column, str]]) -> str:
        """A SELECT giving each (place in the row, column, alias) from the JSON parameter."""
        raise NotImplementedError

    def update_sql(self) -> str:
        """The UPDATE that joins the rows by key."""
        raise NotImplementedError

    def delete_sql(self) -> str:
        """The DELETE that joins the keys."""
        raise NotImplementedError

    def rekey_sql(self) -> str:
        """The UPDATE that also sets the key."""
        raise NotImplementedError

    def alike_sql(self) -> str:
        """The SELECT that numbers the arriving keys, each with its place after it, by what the table's key takes for equal."""
        order = ", ".join(self.compared(c, f"k.{self.alias(i)}") for i, c in enumerate(self.keys))
        return f"SELECT k.{self.quote(_PLACE.name)}, DENSE_RANK() OVER (ORDER BY {order}) FROM ({self.places_in()}) k"

    def compared(self, column: Column, value: str) -> str:
        """What a value of `places_in` is compared as."""
        del column
        return value

    def places_in(self) -> str:
        """The arriving keys, called as in `keys_in`, each with its place."""
        return self.source([*self._keys_here(), (len(self.keys), _PLACE, _PLACE.name)])

    def rows_in(self, *, offset: int = 0, old_key: bool = False) -> str:
        """The arriving rows inside the row filter, their columns called stsync_0, stsync_1 … so that a bare name in the
        filter, used beside it, can only mean the table's own column."""
        named = [(i + offset, c, c.name) for i, c in self.places]
        olds = [(i, c, f"stsync_old_{i}") for i, c in enumerate(self.keys)] if old_key else []
        outer = [f"f.{self.quote(c.name)} AS {self.alias(i)}" for i, c in self.places]
        outer += [f"f.{self.quote(name)} AS {self.quote(name)}" for _, _, name in olds]
        where = f" WHERE ({self.where})" if self.where else ""
        return f"SELECT {', '.join(outer)} FROM ({self.source([*named, *olds])}) f{where}"

    def keys_in(self) -> str:
        """The arriving keys of a `delete` frame, called stsync_0 …"""
        return self.source(self._keys_here())

    def _keys_here(self) -> list[tuple[int, Column, str]]:
        return [(i, c, f"stsync_{i}") for i, c in enumerate(self.keys)]

    def alias(self, place: int) -> str:
        """What the value at a place of the row is called in `rows_in`."""
        return self.quote(f"stsync_{place}")

    def key_match(self, prefix: str = "stsync_") -> str:
        """The table's key equals the arriving one."""
        return " AND ".join(f"t.{self.quote(c.name)} = x.{self.quote(f'{prefix}{i}')}" for i, c in enumerate(self.keys))

    def local_filter(self) -> str:
        """And the row that stands here is inside the row filter (TRAPS 32)."""
        return f" AND ({self.where})" if self.where else ""

    def assignments(self, *, with_key: bool, prefix: str = "") -> str:
        """`column = arriving value` for every written column; the key itself where there is nothing else."""
        settable = [(i, c) for i, c in self.places if not c.fixed or c in self.keys]
        skip = 0 if with_key or len(settable) == len(self.keys) else len(self.keys)
        return ", ".join(f"{prefix}{self.quote(c.name)} = x.{self.alias(i)}" for i, c in settable[skip:])

    def fixed_match(self) -> str:
        """And what no update can set is as it arrives; else the row is not taken, and so seen."""
        fixed = [(i, c) for i, c in self.places if c.fixed and c not in self.keys]
        return "".join(f" AND t.{self.quote(c.name)} IS NOT DISTINCT FROM x.{self.alias(i)}" for i, c in fixed)

    def overriding(self) -> str:
        """What an INSERT says to keep identity values as they are."""
        return ""

    def _insert_sql(self) -> str:
        names = ", ".join(self.quote(c.name) for _, c in self.places)
        values = ", ".join(f"x.{self.alias(i)}" for i, _ in self.places)
        return f"INSERT INTO {self.target} ({names}){self.overriding()} SELECT {values} FROM ({self.rows_in()}) x"

    def _absent(self) -> str:
        return f" WHERE NOT EXISTS (SELECT 1 FROM {self.target} t WHERE {self.key_match()})"
