"""Chunks of a session on this node's disk, sealed as they came, until they are installed (DESIGN §8)."""

import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Final

from common.errors import StsyncError
from common.session import Chunk, Said, parse_said
from common.wire import Verified

_READY_BYTES: Final = 8 << 20


class SpoolClosedError(StsyncError):
    """The session is over; nothing more comes."""


@dataclass(frozen=True)
class _Place:
    offset: int
    size: int
    message: Verified
    part: int


class Spool:
    """Keeps sealed bodies in a file without a name, which goes with the process; `open_` opens one of them. What came last is kept
    as it is, too, for who reads it soon. One thread adds, and another may read meanwhile."""

    def __init__(self, open_: Callable[[Verified], bytes]) -> None:
        self._open = open_
        self._file: IO[bytes] | None = None
        self._end = 0
        self._places: dict[int, list[_Place]] = {}
        self._rows: dict[int, int] = {}
        self._ready: dict[tuple[int, int], Chunk] = {}
        self._order: deque[tuple[int, int]] = deque()
        self._ready_bytes = 0
        self._changed = threading.Condition()
        self._all = self._closed = False

    def add(self, said: Chunk, message: Verified) -> None:
        """Keep a chunk; raises OSError where the disk is full, or no file can be made."""
        with self._changed:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="stsync-session-")  # noqa: SIM115 (closed by `close`)
            self._file.seek(self._end)
            self._file.write(message.sealed)
            size = len(message.sealed)
            bare = Verified(message.header, b"", message.aad, message.hash, message.size)
            places = self._places.setdefault(said.table, [])
            self._keep_ready((said.table, len(places)), said)
            places.append(_Place(self._end, size, bare, said.part))
            self._rows[said.table] = self._rows.get(said.table, 0) + said.count
            self._end += size
            self._changed.notify_all()

    def _keep_ready(self, key: tuple[int, int], said: Chunk) -> None:
        self._ready[key] = said
        self._order.append(key)
        self._ready_bytes += len(said.rows)
        while self._ready_bytes > _READY_BYTES:
            self._ready_bytes -= len(self._ready.pop(self._order.popleft()).rows)

    def end(self) -> None:
        """Nothing more comes: who reads waits no longer."""
        with self._changed:
            self._all = True
            self._changed.notify_all()

    def chunks(self, table: int, rows: int) -> Iterator[Chunk]:
        """A table's chunks in their order, each with its whole text, as they come: until these are so many rows, or nothing more
        comes. May be read again. Raises SpoolClosedError where the session is over before."""
        texts: list[str] = []
        number = 0
        while (found := self._wait(table, number, rows)) is not None:
            said = found if isinstance(found, Chunk) else self._read(found)
            number += 1
            if isinstance(said, Chunk):  # nothing else is added
                texts.append(said.rows)
                if not said.more:
                    yield Chunk(said.part, said.table, said.count, "".join(texts))
                    texts = []

    def _wait(self, table: int, number: int, rows: int) -> _Place | Chunk | None:
        """The chunk with this number, or where it is; None where there is none."""
        with self._changed:
            while not self._closed and len(self._places.get(table, ())) <= number:
                if self._all or self._rows.get(table, 0) >= rows:
                    return None
                self._changed.wait()
            if self._closed:
                raise SpoolClosedError("the session is over")
            return self._ready.get((table, number)) or self._places[table][number]

    def wait_for_all(self) -> None:
        """Until nothing more comes; raises SpoolClosedError where the session is over before."""
        with self._changed:
            while not self._all and not self._closed:
                self._changed.wait()
            if self._closed:
                raise SpoolClosedError("the session is over")

    def _read(self, place: _Place) -> Said | None:
        with self._changed:
            if self._file is None:
                return None
            self._file.seek(place.offset)
            sealed, bare = self._file.read(place.size), place.message
        return parse_said(self._open(Verified(bare.header, sealed, bare.aad, bare.hash, bare.size)))

    def close(self) -> None:
        """Give the disk's space back; who reads waits no longer."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            file, self._file = self._file, None
            self._changed.notify_all()
        if file is not None:
            with suppress(OSError):  # what found no room is written once more; it is closed all the same
                file.close()
