"""What the installation of a full synchronization needs of SQLite."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Final

from sqlalchemy.engine import Connection

from common.dialects.sqlite_capture import quote
from common.schema import ForeignKey, Rule

_RULES: Final[Mapping[str, Rule]] = {"CASCADE": "cascade", "SET NULL": "null", "SET DEFAULT": "default"}
_TABLES_SQL = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"


class SqliteInstalling:
    """See InstallingDialect."""

    unenforced = True
    bounded_waits = ""
    overriding = ""
    drop_scratch = "DROP TABLE IF EXISTS temp."

    def foreign_keys(self, connection: Connection) -> list[ForeignKey]:
        """See InstallingDialect. Names as the tables have them; a foreign key may spell them otherwise."""
        names = [name for (name,) in connection.exec_driver_sql(_TABLES_SQL)]
        spelled = {name.lower(): name for name in names}
        keys = []
        for child in names:
            rows = connection.exec_driver_sql(f"PRAGMA foreign_key_list({quote(child)})").all()
            for _, group in groupby(sorted(rows), key=lambda row: row[0]):
                pairs = list(group)
                parent = spelled.get(pairs[0][2].lower())
                if parent is None:
                    continue
                theirs = _columns(connection, parent)
                key = [name for _, name in sorted((place, name) for name, (_, place) in theirs.items() if place)]
                referred = key if pairs[0][4] is None else [_spelled(theirs, row[4]) for row in pairs]
                if len(referred) != len(pairs):
                    continue
                own = _columns(connection, child)
                columns = tuple(_spelled(own, row[3]) for row in pairs)
                on_update, on_delete = (_RULES.get(action, "stay") for action in pairs[0][5:7])
                name = f"({', '.join(columns)})"
                keys.append(ForeignKey(name, child, columns, parent, tuple(referred), on_delete, on_update, columns))
        return keys

    def may_uncheck(self, connection: Connection) -> bool:
        """See InstallingDialect."""
        del connection
        return True

    def plain_columns(self, connection: Connection, table: str) -> list[str]:
        """See InstallingDialect: never asked."""
        raise NotImplementedError

    def scratch(
        self, connection: Connection, name: str, table: str, columns: Mapping[str, str], index: Sequence[str]
    ) -> list[str]:
        """See InstallingDialect. In a STRICT table `ANY` converts nothing; elsewhere it would be NUMERIC (stricttables.html)."""
        types = {column: kind for column, (kind, _) in _columns(connection, table).items()}
        collations = _collations(connection, table)
        made = ", ".join(
            f"{quote(called)} {types[column]}" + (f" COLLATE {quote(collations[column])}" if column in collations else "")
            for called, column in columns.items()
        )
        known = connection.exec_driver_sql(f"PRAGMA table_list({table})").all()
        strict = " STRICT" if any(row[5] for row in known if row[0] == "main") else ""
        statements = [f"CREATE TEMPORARY TABLE {quote(name)} ({made}){strict}"]
        if index:
            statements.append(
                f"CREATE INDEX temp.{quote(name + '_index')} ON {quote(name)} ({', '.join(map(quote, index))})"
            )
        return statements

    def joined(self, target: str, sets: Mapping[str, str], sources: Sequence[str], condition: str) -> str:
        """See InstallingDialect."""
        if not sets:
            return f"DELETE FROM {target} WHERE EXISTS (SELECT 1 FROM {', '.join(sources)} WHERE {condition})"
        values = ", ".join(f"{quote(name)} = {value}" for name, value in sets.items())
        return f"UPDATE {target} SET {values} FROM {', '.join(sources)} WHERE {condition}"


def _columns(connection: Connection, table: str) -> dict[str, tuple[str, int]]:
    """The declared type of each column, and its place in the primary key, from 1; of a table given as a name or as SQL."""
    name = table if table.startswith('"') else quote(table)
    return {row[1]: (row[2] or "", row[5]) for row in connection.exec_driver_sql(f"PRAGMA table_xinfo({name})").all()}


def _spelled(columns: Iterable[str], name: str) -> str:
    return next((column for column in columns if column.lower() == name.lower()), name)


def _collations(connection: Connection, table: str) -> dict[str, str]:
    """The collation of each column that is in a unique index, as that index has it."""
    found: dict[str, str] = {}
    for row in connection.exec_driver_sql(f"PRAGMA index_list({table})").all():
        if row[2]:
            for part in connection.exec_driver_sql(f"PRAGMA index_xinfo({quote(row[1])})").all():
                if part[5] and part[2] is not None:
                    found.setdefault(part[2], part[4])
    return found
