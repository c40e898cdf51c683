"""What the dialects have in common where they read whole tables: portions, and rows so long that they are read one by one."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Final

from common.changes import SEPARATOR
from common.dialects.json_writer import columns_for, written
from common.errors import Unavailable
from common.schema import Column, ListedTable

ROWS_AT_ONCE: Final = 1000  # rows that a driver hands over together; those that are longer than LONG come by themselves
LONG: Final = 32 << 10  # bytes
DIGESTS_AT_ONCE: Final = 5000
_KEYS_AT_ONCE: Final = 500
_KEY_BYTES_AT_ONCE: Final = 128 << 10

Texts = Mapping[str, str | None]  # by their keys; None of what is longer than was asked for
# For the rows with keys that the database takes for these, in whatever spelling they have; of at most so many bytes (None: any).
Ask = Callable[[Sequence[str], int | None], Texts]


def taking_part(table: ListedTable, names: Sequence[str]) -> list[Column]:
    """Those of these columns that are synchronized here, the key's first; raises NotApplicable as `columns_for`."""
    return [column for _, column in written(table, columns_for(table, names))]


def gathered(rows: Generator[str, None, None], max_bytes: int) -> Generator[tuple[int, str], None, None]:
    """Rows in portions of so many characters and at most a row more."""
    some: list[str] = []
    size = 0
    with closing(rows):
        for row in rows:
            some.append(row)
            size += len(row) + len(SEPARATOR)
            if size >= max_bytes:
                yield len(some), SEPARATOR.join(some)
                some, size = [], 0
    if some:
        yield len(some), SEPARATOR.join(some)


def whole(table: ListedTable, rows: Iterable[tuple[str | None, str | None]], ask: Ask) -> Generator[str, None, None]:
    """The texts of rows; of those that are too long to come with others there is the key only, and they are asked for."""
    for text, key in rows:
        if text is not None:
            yield text
        elif key is None:
            raise _too_long(table)
        else:
            yield from _alone(table, key, ask)


def asked(table: ListedTable, keys: Sequence[str], ask: Ask) -> Generator[str, None, None]:
    """The texts of the rows with these keys, in their order, each row once."""
    for some in _few(dict.fromkeys(keys)):
        found = ask(some, LONG)
        for key in some:
            if key not in found:
                continue
            text = found[key]
            if text is None:
                yield from _alone(table, key, ask)
            else:
                yield text


def _alone(table: ListedTable, key: str, ask: Ask) -> Iterator[str]:
    """The row with this key; none where it is gone by now, in a transaction that reads no snapshot."""
    found = ask([key], None)
    if key in found:
        text = found[key]
        if text is None:
            raise _too_long(table)
        yield text


def _few(keys: Iterable[str]) -> Iterator[list[str]]:
    """As many at a time as one statement is to look for."""
    some: list[str] = []
    size = 0
    for key in keys:
        if some and (len(some) == _KEYS_AT_ONCE or size + len(key) > _KEY_BYTES_AT_ONCE):
            yield some
            some, size = [], 0
        some.append(key)
        size += len(key)
    if some:
        yield some


def _too_long(table: ListedTable) -> Unavailable:
    return Unavailable(
        f"the database: a row of table {table.name} is longer than its server gives one (max_allowed_packet); raise it there"
    )
