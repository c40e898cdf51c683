"""How the outbox is read in MariaDB, where a change is a row and PyMySQL takes its time for each row and each column.

Texts are read as bytes: MariaDB takes halves of a surrogate pair for characters, which are none in UTF-8, and PyMySQL loses its
connection over them. They come out as Python's surrogate escapes, and the relay sets such a row aside.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from common.changes import SEPARATOR
from common.dialects.base import Run, fitting, outside

_READ_SQL = (
    "SELECT CAST(CONCAT_WS(' ', id, row_count, canonical, LENGTH(table_name), LENGTH(kind),"
    " CONCAT(table_name, kind, columns_json)) AS BINARY), CAST(rows_json AS BINARY) FROM stsync_outbox WHERE id > %s"
)
_PLAIN_SQL = (
    "SELECT id, CAST(table_name AS BINARY), CAST(kind AS BINARY), CAST(columns_json AS BINARY), CAST(rows_json AS BINARY), row_count,"
    " canonical FROM stsync_outbox WHERE id > %s"
)
_ALIKE_SQL = (
    "SELECT COUNT(*), MAX(id), SUM(BINARY table_name = BINARY %s AND BINARY kind = BINARY %s AND BINARY columns_json = BINARY %s"
    " AND canonical = %s AND row_count = 1), SUM(LENGTH(rows_json)), CAST(GROUP_CONCAT(rows_json ORDER BY id SEPARATOR %s) AS BINARY)"
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
        cursor.execute(f"{_PLAIN_SQL}{outside(without)} ORDER BY id LIMIT %s", (after, count))
        return [tuple(map(_text, row)) for row in cursor.fetchall()]


def read_alike(cursor: Any, like: Sequence[Any], limit: int, without: Sequence[Run]) -> tuple[int, str] | None:
    """See EngineDialect.read_alike. What the server cut short (group_concat_max_len, max_allowed_packet) is not taken."""
    after, table, kind, columns, _, _, canonical = like
    cursor.execute(_ALIKE_SQL + outside(without), (table, kind, columns, canonical, SEPARATOR, after, after + limit))
    count, last, alike, size, rows = cursor.fetchone()
    if not count or alike != count or last != after + count or rows is None:
        return None
    if len(rows) != size + (count - 1) * len(SEPARATOR):
        return None
    try:
        return count, rows.decode()
    except UnicodeDecodeError:
        return None


def _text(value: Any) -> Any:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def _apart(rows: Iterable[tuple[bytes, bytes]]) -> list[tuple[Any, ...]]:
    heads: dict[bytes, tuple[Any, ...]] = {}
    found = []
    for described, rows_json in rows:
        number, _, head = described.partition(b" ")
        known = heads.get(head)
        if known is None:
            known = heads[head] = _taken_apart(head)
        table, kind, columns, count, canonical = known
        found.append((int(number), table, kind, columns, _text(rows_json), count, canonical))
    return found


def _taken_apart(head: bytes) -> tuple[Any, ...]:
    """What _READ_SQL put together."""
    count, canonical, of_table, of_kind, texts = head.split(b" ", 4)
    kind = int(of_table)
    columns = kind + int(of_kind)
    return _text(texts[:kind]), _text(texts[kind:columns]), _text(texts[columns:]), int(count), int(canonical)
