"""Changes, change sets and positions: the words of DESIGN §2 as values, and the byte stream a change set travels as.

A change set is a stream of *frames*. A frame is a run of changes of one table and one kind, in their original order:
`rows` is JSON text, one array a row, rows separated by a comma and a line feed, ready to be spliced into `[…]` without being
parsed. Within a row the key columns come first, in key order. What a row holds depends on the kind:

=========  ==========================================================================
insert     the new row's values, in the order of `columns`
update     the same, key unchanged
delete     the key's values only (`columns` names the key)
rekey      the old key's values, then the new row's values in the order of `columns`
truncate   one empty array: every row of the table inside the row filter is gone
=========  ==========================================================================

The stream is cut into batches at any byte; each frame is preceded by its length (4 bytes, big endian).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
import orjson

from common.errors import MessageRefused

SEPARATOR: Final = ",\n"
MAX_NAME: Final = 255  # characters of a table's name; what stores it must take it (common.bookkeeping)
_MAX_COLUMNS: Final = 32_767  # SQLite's, the most of all
_LENGTH: Final = 4
GENESIS: Final = bytes(32)


class Kind(StrEnum):
    """What a change does to its row."""

    INSERT = "I"
    UPDATE = "U"
    DELETE = "D"
    REKEY = "K"
    TRUNCATE = "T"


@dataclass(frozen=True)
class Position:
    """Where a node stands in the log: the last batch applied (or published), its epoch and its hash."""

    epoch: int
    sequence: int
    hash: bytes = GENESIS


class Frame(msgspec.Struct, array_like=True, frozen=True):
    """A run of changes of one table and kind; `count` rows.

    `key`: so many of the columns, the first ones, are the sender's key; 0 where he no longer knew (TRAPS 6). `loose`: a program
    wrote the rows, and one key may have several spellings in them. `unchecked`: the writer had foreign keys switched off, and
    nothing cascaded.
    """

    table: Annotated[str, msgspec.Meta(max_length=MAX_NAME, pattern=r"^[^\x00]*$")]
    kind: Kind
    columns: tuple[str, ...]
    count: int
    rows: str
    key: Annotated[int, msgspec.Meta(ge=0, le=_MAX_COLUMNS)] = 0
    loose: bool = False
    unchecked: bool = False

    def texts(self) -> list[str]:
        """Each row's JSON array, in order."""
        return self.rows.split(SEPARATOR)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def encode_frame(frame: Frame) -> bytes:
    """The frame as it stands in the stream, its length before it."""
    body = _encoder.encode(frame)
    return len(body).to_bytes(_LENGTH, "big") + body


def decode_frames(parts: Iterable[bytes], *, max_frame_bytes: int) -> Iterator[Frame]:
    """The frames of a change set whose stream arrives in parts; at no time is more than a frame and a part in memory.

    Raises MessageRefused: `size` for a frame above the bound, `malformed` for bytes that are no frames or end in the middle.
    """
    buffer = bytearray()
    for part in parts:
        buffer += part
        start = 0
        while len(buffer) - start >= _LENGTH:
            size = int.from_bytes(buffer[start : start + _LENGTH], "big")
            if size > max_frame_bytes:
                raise MessageRefused("size", f"a change of {size} bytes is above the bound of {max_frame_bytes}")
            if len(buffer) - start - _LENGTH < size:
                break
            yield _decode(memoryview(buffer)[start + _LENGTH : start + _LENGTH + size])
            start += _LENGTH + size
        del buffer[:start]
    if buffer:
        raise MessageRefused("malformed", "a change set ends in the middle of a change")


def _decode(data: memoryview) -> Frame:
    try:
        frame = _decoder.decode(bytes(data))
    except ValueError as exc:  # of msgspec, or bytes of a text that are no UTF-8
        raise MessageRefused("malformed", "a change set holds something that is no change") from exc
    if "\0" in frame.rows or any("\0" in name for name in frame.columns):  # no text of a database holds it, nor does JSON
        raise MessageRefused("malformed", f"a frame of table {frame.table} holds a NUL")
    if frame.count < 1 or frame.rows.count(SEPARATOR) != frame.count - 1 or not frame.rows.startswith("["):
        raise MessageRefused(
            "malformed", f"a frame of table {frame.table} does not hold the {frame.count} rows it announces"
        )
    return frame


_SCALAR: Final = r'(?:"(?:[^"\\]|\\.)*"|\{"[rx]":"[^"]*"\}|[^",\[\]{}]+)'


def key_pattern(key_columns: int) -> re.Pattern[str]:
    """What finds the key at the beginning of each row of `Frame.rows`: a group a key column, each value's JSON text."""
    return re.compile(r"(?:^|(?<=,\n))\[" + ", ?".join([f"({_SCALAR})"] * key_columns))


Key = str | tuple[str, ...]


def keys_of(frame: Frame, key_columns: int) -> list[Key]:
    """The key of each row, its values as JSON text (a tuple where the key has several columns); for `rekey` the old key.

    One key has one text, however its writer escaped it: JSON may write `/` as `\\/`.

    Raises MessageRefused (malformed) when a row does not begin with as many values as the table's key has columns.
    """
    keys: list[Key] = key_pattern(key_columns).findall(frame.rows)
    if len(keys) != frame.count:
        raise MessageRefused("malformed", f"a row of table {frame.table} does not begin with its key")
    try:
        return [_plain(key) for key in keys] if "\\" in frame.rows else keys
    except ValueError as exc:
        raise MessageRefused("malformed", f"a key of table {frame.table} is no JSON") from exc


def _plain(key: Key) -> Key:
    if isinstance(key, str):
        return _encoded(key)
    return tuple(map(_encoded, key))


def _encoded(value: str) -> str:
    return msgspec.json.encode(msgspec.json.decode(value)).decode() if "\\" in value else value


def values_of(row: str) -> list[Any]:
    """A row's values; raises ValueError where it is no JSON array, as of a program that only says it were a trigger."""
    found = orjson.loads(row)
    if not isinstance(found, list):
        raise ValueError("a row that is no array")  # noqa: TRY004 (as where it is no JSON)
    return found


def without_old_key(row: str, key_columns: int) -> str:
    """The new row of a `rekey` row; raises ValueError as `values_of`."""
    return orjson.dumps(values_of(row)[key_columns:]).decode()


def printable(text: str) -> str:
    """With escapes for what is no character: bytes that were no UTF-8."""
    return text.encode(errors="backslashreplace").decode()
