"""How the outbox is read in MariaDB, where a change is a row and PyMySQL takes its time for each row and each column."""

from collections.abc import Iterable, Sequence
from typing import Any

from common.changes import SEPARATOR
from common.dialects.base import Run, fitting, outside, read_plainly

_READ_SQL = (
    "SELECT CONCAT_WS(' ', id, row_count, canonical, CHAR_LENGTH(table_name), CHAR_LENGTH(kind),"
    " CONCAT(table_name, kind, columns_json)), rows_json FROM stsync_outbox WHERE id > %s"
)
_ALIKE_SQL = (
    "SELECT COUNT(*), MAX(id), SUM(BINARY table_name = BINARY %s AND BINARY kind = BINARY %s AND BINARY columns_json = BINARY %s"
    " AND canonical = %s AND row_count = 1), SUM(LENGTH(rows_json)), GROUP_CONCAT(rows_json ORDER BY id SEPARATOR %s)"
    " FROM stsync_outbox WHERE id > %s AND id <= %s"
)


def read(cursor: Any, after: int, limit: int, max_bytes: int | None, without: Sequence[Run]) -> Sequence[tuple[Any, ...]]:
    """See EngineDialect.read_outbox: in two columns, and what repeats from row to row is taken apart once."""
    count = fitting(cursor, "length(rows_json)", after, limit, max_bytes, without)
    cursor.execute(f"{_READ_SQL}{outside(without)} ORDER BY id LIMIT %s", (after, count))
    rows = cursor.fetchall()
    try:
        return _apart(rows)
    except ValueError:  # together too long for max_allowed_packet, and so NULL
        return read_plainly(cursor, after, count, without)


def read_alike(cursor: Any, like: Sequence[Any], limit: int, without: Sequence[Run]) -> tuple[int, str] | None:
    """See EngineDialect.read_alike. What the server cut short (group_concat_max_len, max_allowed_packet) is not taken."""
    after, table, kind, columns, _, _, canonical = like
    cursor.execute(_ALIKE_SQL + outside(without), (table, kind, columns, canonical, SEPARATOR, after, after + limit))
    count, last, alike, size, rows = cursor.fetchone()
    if not count or alike != count or last != after + count or rows is None:
        return None
    written = len(rows if rows.isascii() else rows.encode())
    return (count, rows) if written == size + (count - 1) * len(SEPARATOR) else None


def _apart(rows: Iterable[tuple[str, str]]) -> list[tuple[Any, ...]]:
    heads: dict[str, tuple[Any, ...]] = {}
    found = []
    for described, rows_json in rows:
        number, _, head = described.partition(" ")
        known = heads.get(head)
        if known is None:
            known = heads[head] = _taken_apart(head)
        table, kind, columns, count, canonical = known
        found.append((int(number), table, kind, columns, rows_json, count, canonical))
    return found


def _taken_apart(head: str) -> tuple[str, str, str, int, int]:
    """What _READ_SQL put together."""
    count, canonical, of_table, of_kind, texts = head.split(" ", 4)
    kind = int(of_table)
    columns = kind + int(of_kind)
    return texts[:kind], texts[kind:columns], texts[columns:], int(count), int(canonical)
