"""How rows get into PostgreSQL's tables: few as JSON, many by COPY, which costs the server less for each row."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from common.changes import SEPARATOR
from common.dialects.base import Cursor
from common.dialects.json_writer import JsonWriter
from common.dialects.script import Collected, Script
from common.schema import Column, ListedTable

MANY: Final = 32 << 10  # characters of rows: below, a statement that is prepared is quicker
_ESCAPE: Final = re.compile(r"\\(.)")
_PLAIN: Final = {'"': '""', "\\": "\\", "/": "/", "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
# What may stand between two strings of rows: in JSON it means what it means in CSV, once the brackets are gone.
_BEGIN: Final = re.compile(r"\[(?:null,)*")
_BETWEEN: Final = re.compile(r"(?:,null)*(?:,|\],\n\[)(?:null,)*")
_END: Final = re.compile(r"(?:,null)*\]")
_END_OF_DATA: Final = re.compile(r"[\n\r]\\\.")
_SUBQUERY: Final = re.compile(r"\b(?:select|values|table)\b", re.IGNORECASE)


def quote(name: str) -> str:
    """An identifier, quoted."""
    return '"' + name.replace('"', '""') + '"'


class PostgresqlWriter(JsonWriter):
    """Frames through `jsonb_array_elements`, or COPY: either way each value goes through its type's own input function."""

    def __init__(self, table: ListedTable, names: Sequence[str]) -> None:
        super().__init__(table, names, quote)
        self._copy = self._copy_sql()

    def insert(self, cursor: Cursor, rows: str) -> int:
        """See TableWriter."""
        text = None
        later = isinstance(cursor, Collected)  # what came before is still to be run, and has to stay before
        if self._copy and len(rows) >= MANY and not later:
            text = as_csv(rows)
        if text is None:
            return super().insert(cursor, rows)
        direct: Any = cursor.direct if isinstance(cursor, Script) else cursor
        with direct.copy(self._copy) as copy:
            copy.write(text)
        return int(direct.rowcount)

    def _copy_sql(self) -> str | None:
        """None where COPY would not do what an INSERT does here."""
        where = self.table.where or ""
        table = self.table.table
        computed = any(column.generated for column in table.columns)
        if not table.copyable or len(self.places) < len(self.columns) or _SUBQUERY.search(where) or (where and computed):
            return None
        names = ", ".join(quote(column.name) for column in self.columns)
        inside = f" WHERE ({where})" if where else ""
        return f"COPY {quote(self.table.name)} ({names}) FROM STDIN WITH (FORMAT csv, NULL 'null'){inside}"

    def source(self, columns: Iterable[tuple[int, Column, str]]) -> str:
        """See JsonWriter. Types without their modifier, so that a value too long is an error, never cut."""
        values = ", ".join(f"(r->>{place})::{column.type} AS {self.quote(name)}" for place, column, name in columns)
        return f"SELECT {values} FROM jsonb_array_elements(%s::jsonb) r"

    def respell_sql(self, free: Sequence[tuple[int, Column]]) -> str:
        """See JsonWriter."""
        sets = ", ".join(f"{self.quote(c.name)} = x.{self.alias(i)}" for i, c in free)
        differ = " OR ".join(
            f't.{self.quote(c.name)}::text COLLATE "C" IS DISTINCT FROM x.{self.alias(i)}::text COLLATE "C"' for i, c in free
        )
        return (
            f"UPDATE {self.target} t SET {sets} FROM ({self.rows_in()}) x"
            f" WHERE {self.key_match()} AND ({differ}){self.local_filter()}"
        )

    def places_in(self) -> str:
        """See JsonWriter. A union has the collations of the table's own columns."""
        keys = "".join(f"t.{self.quote(c.name)} AS {self.alias(i)}, " for i, c in enumerate(self.keys))
        own = f"SELECT {keys}NULL::bigint AS {self.quote('stsync_place')} FROM {self.target} t WHERE false"
        return f"{own} UNION ALL {super().places_in()}"

    def overriding(self) -> str:
        """Identity columns keep the primary's values."""
        return " OVERRIDING SYSTEM VALUE"

    def update_sql(self) -> str:
        """See JsonWriter."""
        return (
            f"UPDATE {self.target} t SET {self.assignments(with_key=False)} FROM ({self.rows_in()}) x"
            f" WHERE {self.key_match()}{self.fixed_match()}{self.local_filter()}"
        )

    def delete_sql(self) -> str:
        """See JsonWriter."""
        return f"DELETE FROM {self.target} t USING ({self.keys_in()}) x WHERE {self.key_match()}{self.local_filter()}"

    def rekey_sql(self) -> str:
        """See JsonWriter."""
        rows = self.rows_in(offset=len(self.keys), old_key=True)
        return (
            f"UPDATE {self.target} t SET {self.assignments(with_key=True)} FROM ({rows}) x"
            f" WHERE {self.key_match('stsync_old_')}{self.fixed_match()}{self.local_filter()}"
        )


def as_csv(rows: str) -> str | None:
    """Rows as COPY takes them; None where they hold anything but strings and nulls, or what only JSON can say.

    In CSV a quoted value is as it stands, line feeds and all, with its quotes doubled; only a line that begins with a backslash and a
    dot ends all of it, even within quotes.
    """
    escaped = "\\" in rows
    parts = (_ESCAPE.sub("", rows) if escaped else rows).split('"')
    between = parts[2:-1:2]
    if len(parts) < 3 or len(parts) % 2 == 0 or not _BEGIN.fullmatch(parts[0]) or not _END.fullmatch(parts[-1]):
        return None
    if not all(map(_BETWEEN.fullmatch, set(between))) or "".join(between).count("\n") != rows.count("\n"):
        return None
    lines = rows[1:-1].replace(f"]{SEPARATOR}[", "\n")
    if not escaped:
        return lines
    try:
        lines = _ESCAPE.sub(lambda found: _PLAIN[found[1]], lines)
    except KeyError:
        return None
    return None if _END_OF_DATA.search(lines) else lines
