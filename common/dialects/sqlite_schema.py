"""What SQLite's schema and its pragmas tell of the tables that can be listed."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from sqlalchemy.engine import Connection

from common.dialects.base import by_name
from common.dialects.sqlite_capture import MAX_KEY, quote
from common.schema import Cascade, Column, Equality, OtherTrigger, Table, Unique

_OTHERS_SQL = r"""
SELECT lower(o.tbl_name), o.name, o.sql,
       o.rowid > (SELECT min(m.rowid) FROM sqlite_master m
                  WHERE m.type = 'trigger' AND m.tbl_name = o.tbl_name COLLATE NOCASE AND m.name LIKE 'stsync\_%' ESCAPE '\')
FROM sqlite_master o WHERE o.type = 'trigger' AND o.name NOT LIKE 'stsync\_%' ESCAPE '\' ORDER BY o.name
"""
_PASSIVE = ("NO ACTION", "RESTRICT")


def tables(connection: Connection) -> dict[str, Table]:
    """See CaptureDialect."""
    names = connection.exec_driver_sql(
        "SELECT name FROM sqlite_master WHERE type = 'table'"
        " AND name NOT LIKE 'stsync\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    )
    others: dict[str, list[OtherTrigger]] = {}
    overtaken = set()
    for table, trigger, sql, younger in connection.exec_driver_sql(_OTHERS_SQL):
        others.setdefault(table, []).append(OtherTrigger(trigger, "stsync_replaying" in sql.lower()))
        if younger:
            overtaken.add(table)
    found = [
        _describe(connection, name, others.get(name.lower(), ()), overtaken=name.lower() in overtaken)
        for (name,) in names.all()
    ]
    return by_name(_related(connection, found))


def _describe(connection: Connection, name: str, others: Sequence[OtherTrigger], *, overtaken: bool) -> Table:
    rows = connection.exec_driver_sql(f"PRAGMA table_xinfo({quote(name)})").all()
    indexes = connection.exec_driver_sql(f"PRAGMA index_list({quote(name)})").all()
    names = [column for _, column in sorted((row[5], row[1]) for row in rows if row[5])]
    primary = next((_unique(connection, row[1]) for row in indexes if row[3] == "pk"), None)
    nullable = primary is not None and not _without_rowid(connection, name)  # else it is the row's own number
    key = primary or Unique(tuple(names), ("BINARY",) * len(names))
    collations = dict(zip(key.columns, key.collations, strict=True))
    columns = [
        Column(
            column,
            kind or "",
            hidden in (2, 3),
            bool(notnull) and default is None,
            nullable=nullable and not notnull and column in names,
            equality="exact" if primary is None else _equality(kind or "", collations.get(column, "BINARY")),
        )
        for _, column, kind, notnull, default, _, hidden in rows
    ]
    uniques = [_unique(connection, row[1], partial=bool(row[4])) for row in indexes if row[2] and row[3] != "pk"]
    guarded = [_guarded(columns, None if one is None or one.partial else one.columns) for one in (key, *uniques)]
    return Table(
        name,
        tuple(columns),
        tuple(names),
        uniques=(key, *filter(None, uniques)),
        triggers=tuple(others),
        obstacle=f"has a primary key of more than {MAX_KEY} columns" if len(names) > MAX_KEY else None,
        guarded=frozenset().union(*guarded),
        overtaken=overtaken,
    )


def _guarded(columns: Iterable[Column], names: Iterable[str] | None) -> frozenset[str]:
    """See Table.guarded, of one key; None: what it looks at is not told."""
    plain = {column.name.lower(): column.name for column in columns if not column.generated}
    wanted = None if names is None else {name.lower() for name in names}
    if wanted is None or not wanted <= plain.keys():
        return frozenset(plain.values())
    return frozenset(plain[name] for name in wanted)


def _spelled(table: Table, name: str) -> str:
    """A column's name as the table has it; a foreign key may write it otherwise."""
    return next((column.name for column in table.columns if column.name.lower() == name.lower()), name)


def _related(connection: Connection, tables: Sequence[Table]) -> list[Table]:
    """The tables with their foreign keys: parents as the tables themselves are spelled, and what cascades from each."""
    known = {table.name.lower(): table for table in tables}
    parents: dict[str, set[str]] = {}
    cascades: dict[str, list[Cascade]] = {}
    referring: dict[str, set[str]] = {}
    for child in tables:
        rows = connection.exec_driver_sql(f"PRAGMA foreign_key_list({quote(child.name)})").all()
        for _, group in groupby(sorted(rows), key=lambda row: row[0]):
            pairs = list(group)
            referring.setdefault(child.name, set()).update(row[3] for row in pairs)
            parent = known.get(pairs[0][2].lower())
            if parent is None:
                continue
            parents.setdefault(child.name, set()).add(parent.name)
            columns = tuple(row[3] for row in pairs)
            theirs = parent.key if pairs[0][4] is None else tuple(_spelled(parent, row[4]) for row in pairs)
            on_update, on_delete = (action not in _PASSIVE for action in pairs[0][5:7])
            if (on_delete or on_update) and len(theirs) == len(columns):
                cascades.setdefault(parent.name, []).append(Cascade(child.name, columns, theirs, on_delete, on_update))
    return [
        replace(
            table,
            parents=frozenset(parents.get(table.name, ())),
            cascades=tuple(cascades.get(table.name, ())),
            guarded=table.guarded | _guarded(table.columns, referring.get(table.name, set())),
        )
        for table in tables
    ]


def _without_rowid(connection: Connection, name: str) -> bool:
    rows = connection.exec_driver_sql(f"PRAGMA table_list({quote(name)})").all()
    return any(row[4] for row in rows if row[0] == "main")


def _unique(connection: Connection, index: str, *, partial: bool = False) -> Unique | None:
    """The columns of an index; None when it is over an expression."""
    rows = [row for row in connection.exec_driver_sql(f"PRAGMA index_xinfo({quote(index)})").all() if row[5]]
    if any(row[2] is None for row in rows):
        return None
    return Unique(tuple(row[2] for row in rows), tuple(row[4] for row in rows), partial)


def _equality(kind: str, collation: str) -> Equality:
    """By affinity (datatype3.html, 3.1); without one, or as `ANY` in a STRICT table, 1 and 1.0 are two values that are equal."""
    kind = kind.upper()
    if kind in ("", "ANY") or "BLOB" in kind:
        return "unknown"
    if collation == "BINARY":
        return "exact"
    return "folded" if collation in ("NOCASE", "RTRIM") else "unknown"
