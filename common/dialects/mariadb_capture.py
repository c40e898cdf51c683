"""MariaDB's triggers: row by row, for it has no others."""

import hashlib
from collections.abc import Iterable

from common.dialects.base import UNCHECKED, Trigger, columns_json
from common.dialects.mariadb_values import TEXT, literal, quote, text_in_trigger, text_of, type_of
from common.schema import Column, ListedTable

_CANONICAL = f"{UNCHECKED} - @@foreign_key_checks"  # which is CANONICAL where they are on: quicker than an IF


def triggers(table: ListedTable) -> list[Trigger]:
    """See CaptureDialect. Cascades fire no triggers here: they happen again on the secondary (TRAPS 2)."""
    insert = _emit(table, "I", _row([("NEW", c) for c in table.columns]), table.columns)
    delete = _emit(table, "D", _row([("OLD", c) for c in table.key]), table.key)
    return [
        _trigger(table, "stsync_i_", "INSERT", _when(table, "NEW", insert)),
        _trigger(table, "stsync_u_", "UPDATE", _update_body(table, insert, delete)),
        _trigger(table, "stsync_d_", "DELETE", _when(table, "OLD", delete)),
    ]


def row_json(columns: Iterable[tuple[str, Column]]) -> str:
    """SQL for a row's values as a frame has them; each with the SQL of where it stands."""
    return _array(text_of(column, reference) for reference, column in columns)


def _row(columns: Iterable[tuple[str, Column]]) -> str:
    return _array(text_in_trigger(column, f"{alias}.{quote(column.name)}") for alias, column in columns)


def _array(texts: Iterable[str]) -> str:
    return f"JSON_ARRAY({', '.join(texts)})"


def _trigger(table: ListedTable, prefix: str, verb: str, body: str) -> Trigger:
    name = f"{prefix}{table.name}"
    if len(name) > 64:
        name = f"{prefix}{table.name[:40]}_{hashlib.sha256(table.name.encode()).hexdigest()[:12]}"
    create = (  # replaced in one statement, which commits by itself: writers get by before it and after it, never in between
        f"CREATE OR REPLACE TRIGGER {quote(name)} AFTER {verb} ON {quote(table.name)} FOR EACH ROW\n"
        f"BEGIN\n  {_altered(table.name)}\n  IF @stsync_replay IS NULL THEN\n  {body}\n  END IF;\nEND"
    )
    return Trigger(name, table.name, (create,), (f"DROP TRIGGER IF EXISTS {quote(name)}",))


def _altered(table: str) -> str:
    """Columns that the trigger names are gone: the writer, who fails, is told more than that (in 128 characters at most)."""
    told = f"stsync: columns of {table} changed; run `stsync install` on every node"
    return f"DECLARE EXIT HANDLER FOR 1054 SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = {literal(told[:128])};"


def _emit(table: ListedTable, kind: str, row: str, columns: Iterable[Column]) -> str:
    names = columns_json(c.name for c in columns)
    # All of the outbox's columns, unnamed: names are looked up for each row.
    return f"INSERT INTO stsync_outbox VALUES (NULL, {literal(table.name)}, '{kind}', {literal(names)}, {row}, 1, {_CANONICAL});"


def _when(table: ListedTable, alias: str, statement: str) -> str:
    if not table.where:
        return statement
    flag = f"stsync_{alias.lower()}"
    return f"BEGIN\n{_judge(table, alias)}\n  IF {flag} THEN {statement} END IF; END;"


def _judge(table: ListedTable, alias: str) -> str:
    """Sets the variable `stsync_old` or `stsync_new` to whether that row is inside the row filter.

    The filter's bare column names become variables of an inner block. (A derived table over OLD or NEW would read better, and
    crashes the server as soon as a text column is in it: MariaDB 10.11.19, Field_blob::store_field below mysql_handle_derived.)
    """
    where = (table.where or "").lower()
    named = [column for column in table.table.columns if column.name.lower() in where]
    declared = " ".join(f"DECLARE {quote(c.name)} {_variable(c, f'{alias}.{quote(c.name)}')};" for c in named)
    flag = f"stsync_{alias.lower()}"
    return f"  DECLARE {flag} BOOL DEFAULT FALSE;\n  BEGIN {declared} SET {flag} = COALESCE(({table.where}), FALSE); END;"


def _variable(column: Column, value: str) -> str:
    """The type and the value that a row filter sees: of a TIMESTAMP what it is in UTC, as in replay, whatever the writer's time zone
    (a trigger cannot have one of its own)."""
    if type_of(column) != "timestamp":
        return f"{column.type} DEFAULT {value}"
    utc = f"TIMESTAMP '1970-01-01 00:00:00' + INTERVAL UNIX_TIMESTAMP({value}) SECOND"
    return f"datetime{column.type[len('timestamp') :]} DEFAULT IF({value} = 0, '0000-00-00 00:00:00', {utc})"


def _same(columns: Iterable[Column], other: str = "NEW") -> str:
    """Whether OLD and NEW (or another row) are equal to the byte in these columns."""
    parts = []
    for column in columns:
        old, new = f"OLD.{quote(column.name)}", f"{other}.{quote(column.name)}"
        if type_of(column) in TEXT:
            old, new = f"BINARY {old}", f"BINARY {new}"
        parts.append(f"{old} <=> {new}")
    return " AND ".join(parts) or "TRUE"


def _update_body(table: ListedTable, insert: str, delete: str) -> str:
    update = _emit(table, "U", _row([("NEW", c) for c in table.columns]), table.columns)
    rekey_row = _row([*(("OLD", c) for c in table.key), *(("NEW", c) for c in table.columns)])
    rekey = _emit(table, "K", rekey_row, table.columns)
    same_key = _same(table.key)
    changed = f"NOT ({_same(table.columns[len(table.key) :])})"
    body = f"IF NOT ({same_key}) THEN {rekey} ELSEIF {changed} THEN {update} END IF;"
    if table.where:
        body = (
            f"BEGIN\n{_judge(table, 'OLD')}\n  BEGIN\n{_judge(table, 'NEW')}\n"
            f"  IF stsync_old AND stsync_new THEN {body}\n  ELSEIF stsync_old THEN {delete}\n"
            f"  ELSEIF stsync_new THEN {insert} END IF;\n  END; END;"
        )
    return f"IF {_skipped(table)} THEN BEGIN END; ELSE {body} END IF;"


def _skipped(table: ListedTable) -> str:
    """Whether this update was not made: UPDATE IGNORE passes over rows that a unique or a foreign key refuses, and MariaDB calls
    triggers for them with values that are nowhere. The row then still stands as it was."""
    guarded = [column for column in table.table.columns if column.name in table.table.guarded]
    found = " AND ".join(f"s.{quote(c.name)} = OLD.{quote(c.name)}" for c in table.key)
    return (
        f"NOT ({_same(guarded)}) AND EXISTS (SELECT 1 FROM {quote(table.name)} s WHERE {found} AND {_same(guarded, 's')}"
        " LOCK IN SHARE MODE)"
    )
