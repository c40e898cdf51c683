"""Turns what was drained from the outbox into a change set: frames, cut into sealed, signed, chained batches (DESIGN §5, §6)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from common.changes import SEPARATOR, Frame, Kind, Position, encode_frame
from common.wire import MessageKind, Writer, message_hash


@dataclass(frozen=True)
class Batch:
    """A signed message with its place in the log."""

    sequence: int
    hash: bytes
    message: bytes


class Head(NamedTuple):
    """What the changes of a frame have in common; see Frame."""

    table: str
    kind: Kind
    columns: tuple[str, ...]
    key: int
    loose: bool = False
    unchecked: bool = False


class Composer:
    """Composes one change set: `add` the changes in order, `finish` once; batches come out as they are full.

    Neighbouring changes of one table, kind and column list become one frame, so that a secondary needs one statement for them.
    A batch carries at most `batch_bytes` of the stream; only the last one says that the change set is complete, and a
    secondary applies nothing before it has it (TRAPS 1).
    """

    def __init__(self, writer: Writer, position: Position, batch_bytes: int) -> None:
        self._writer = writer
        self.position = position
        self._batch_bytes = batch_bytes
        self._stream = bytearray()
        self._first = True
        self._head: Head | None = None
        self._rows: list[str] = []
        self._count = 0
        self._size = 0
        self.changes = 0

    def add(self, head: Head, count: int, rows: str) -> list[Batch]:
        """Append `count` changes; the batches that became full."""
        if count > 1 and len(rows) > self._batch_bytes:  # no frame is larger than a secondary takes unless its row is
            return [full for number, some in portions(rows, self._batch_bytes) for full in self.add(head, number, some)]
        if head != self._head or self._size >= self._batch_bytes // 2:
            self._close_frame()
            self._head = head
        self._rows.append(rows)
        self._count += count
        self._size += len(rows)
        self.changes += count
        full = []
        while len(self._stream) > self._batch_bytes:
            full.append(self._cut(last=False))
        return full

    def finish(self) -> Iterator[Batch]:
        """The rest of the change set; yields nothing when nothing was added."""
        self._close_frame()
        while len(self._stream) > self._batch_bytes:
            yield self._cut(last=False)
        if self._stream:
            yield self._cut(last=True)

    def _close_frame(self) -> None:
        if self._head is None or not self._rows:
            return
        table, kind, columns, key, loose, unchecked = self._head
        rows = SEPARATOR.join(self._rows)
        self._stream += encode_frame(Frame(table, kind, columns, self._count, rows, key, loose, unchecked))
        self._rows, self._count, self._size = [], 0, 0

    def _cut(self, *, last: bool) -> Batch:
        body = bytes(self._stream[: self._batch_bytes])
        del self._stream[: self._batch_bytes]
        sequence = self.position.sequence + 1
        message = self._writer.write(
            MessageKind.BATCH,
            body,
            epoch=self.position.epoch,
            sequence=sequence,
            previous=self.position.hash,
            first=self._first,
            last=last,
        )
        self._first = False
        self.position = Position(self.position.epoch, sequence, message_hash(message))
        return Batch(sequence, self.position.hash, message)


def portions(rows: str, size: int) -> Iterator[tuple[int, str]]:
    """Rows in portions of at most so many characters, or of one row: their number and text."""
    start = 0
    while start < len(rows):
        end = len(rows) if len(rows) - start <= size else rows.rfind(SEPARATOR, start, start + size + len(SEPARATOR))
        if end <= start:
            end = rows.find(SEPARATOR, start)
        some = rows[start:] if end < 0 else rows[start:end]
        yield some.count(SEPARATOR) + 1, some
        start += len(some) + len(SEPARATOR)
