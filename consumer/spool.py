"""Chunks of a session on this node's disk, sealed as they came, until all are there and are installed (DESIGN §8)."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from common.session import Chunk, Said, parse_said
from common.wire import Verified


@dataclass(frozen=True)
class _Place:
    offset: int
    size: int
    message: Verified
    part: int


class Spool:
    """Keeps sealed bodies in a file without a name, which goes with the process; `open` opens one of them."""

    def __init__(self, open_: Callable[[Verified], bytes]) -> None:
        self._open = open_
        self._file: IO[bytes] | None = None
        self._end = 0
        self._places: dict[int, list[_Place]] = {}
        self.bytes = 0

    def add(self, table: int, part: int, message: Verified) -> None:
        """Keep a chunk; raises OSError where the disk is full, or no file can be made."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="stsync-session-")  # noqa: SIM115 (closed by `close`)
        self._file.seek(self._end)
        self._file.write(message.sealed)
        size = len(message.sealed)
        bare = Verified(message.header, b"", message.aad, message.hash, message.size)
        self._places.setdefault(table, []).append(_Place(self._end, size, bare, part))
        self._end += size
        self.bytes += message.size

    def chunks(self, table: int) -> Iterator[Chunk]:
        """A table's chunks in their order, each with its whole text; may be read again."""
        texts: list[str] = []
        for place in self._places.get(table, ()):
            said = self._read(place)
            if isinstance(said, Chunk):  # nothing else is added
                texts.append(said.rows)
                if not said.more:
                    yield Chunk(said.part, said.table, said.count, "".join(texts))
                    texts = []

    def _read(self, place: _Place) -> Said | None:
        if self._file is None:
            return None
        self._file.seek(place.offset)
        sealed, bare = self._file.read(place.size), place.message
        return parse_said(self._open(Verified(bare.header, sealed, bare.aad, bare.hash, bare.size)))

    def close(self) -> None:
        """Give the disk's space back."""
        if self._file is not None:
            with suppress(OSError):  # what found no room is written once more; it is closed all the same
                self._file.close()
