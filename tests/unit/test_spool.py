"""Chunks are read as they come, in their order, and again as often as somebody likes (DESIGN §8)."""

import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from common.session import Chunk
from common.wire import Verified, encode_body
from consumer import spool as module
from consumer.spool import Spool, SpoolClosedError
from tests.harness import wait_for


class Kept:
    """A spool and what opened its messages."""

    def __init__(self) -> None:
        self.opened = 0
        self.spool = Spool(self._open)

    def _open(self, message: Verified) -> bytes:
        self.opened += 1
        return message.sealed

    def add(self, rows: str, *, table: int = 0, count: int = 1, more: bool = False, part: int = 0) -> None:
        said = Chunk(part, table, 0 if more else count, rows, more)
        sealed = encode_body(said)
        self.spool.add(said, Verified(cast(Any, None), sealed, b"", b"", len(sealed)))

    def all_chunks(self) -> Iterator[Chunk]:
        self.spool.wait_for_all()
        return iter(())

    def read(self, table: int = 0, rows: int = 100) -> list[tuple[int, str]]:
        return [(one.count, one.rows) for one in self.spool.chunks(table, rows)]


@pytest.fixture
def kept() -> Iterator[Kept]:
    made = Kept()
    yield made
    made.spool.close()


class Reading:
    """A thread that reads a table."""

    def __init__(self, read: Callable[[], Iterator[Chunk]]) -> None:
        self.found: list[str] = []
        self.ended: list[str] = []
        self._read = read
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for one in self._read():
                self.found.append(one.rows)
            self.ended.append("")
        except SpoolClosedError as exc:
            self.ended.append(str(exc))

    def wait(self, number: int) -> None:
        wait_for(lambda: len(self.found) >= number, f"{number} chunks")

    def end(self) -> str:
        self._thread.join(30)
        return self.ended[0]


def test_each_tables_chunks_are_read_in_their_order_and_again(kept: Kept) -> None:
    for number in range(5):
        kept.add(f"a{number}", part=number)
        kept.add(f"b{number}", table=1, count=number)
    kept.spool.end()
    for _ in range(2):
        assert kept.read() == [(1, f"a{number}") for number in range(5)]
        assert kept.read(1) == [(number, f"b{number}") for number in range(5)]
    assert kept.read(2) == []
    assert [one.part for one in kept.spool.chunks(0, 100)] == [0, 1, 2, 3, 4]


def test_a_text_that_came_in_pieces_is_whole_again(kept: Kept) -> None:
    for piece in ("x", "y"):
        kept.add(piece, more=True)
    kept.add("z", count=3)
    kept.spool.end()
    assert kept.read() == [(3, "xyz")]


def test_what_came_last_is_not_opened_again_and_all_else_is(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_READY_BYTES", 25)
    for number in range(4):
        kept.add(f"{number}" * 10)
    kept.spool.end()
    assert kept.read() == [(1, f"{number}" * 10) for number in range(4)]
    assert kept.opened == 2
    kept.add("x" * 100)
    assert kept.read()[-1] == (1, "x" * 100)
    assert kept.opened == 2 + 5, "longer than all that is kept"


def test_who_reads_waits_for_what_comes_until_these_are_all_rows(kept: Kept) -> None:
    reading = Reading(lambda: kept.spool.chunks(0, 3))
    other = Reading(lambda: kept.spool.chunks(1, 3))
    kept.add("a")
    reading.wait(1)
    assert (reading.ended, other.found) == ([], [])
    kept.add("b", count=2)
    assert reading.end() == ""
    assert reading.found == ["a", "b"]
    kept.add("c", table=1)
    other.wait(1)
    kept.spool.end()
    assert other.end() == ""
    assert other.found == ["c"], "fewer than there were to be, and nothing more comes"


def test_who_waits_is_told_where_the_session_is_over_before(kept: Kept) -> None:
    reading = Reading(lambda: kept.spool.chunks(0, 3))
    kept.add("a")
    reading.wait(1)
    waiting = Reading(kept.all_chunks)
    kept.spool.close()
    assert (reading.end(), waiting.end()) == ("the session is over", "the session is over")
    with pytest.raises(SpoolClosedError):
        kept.read()


def test_who_waits_for_all_goes_on_with_the_end(kept: Kept) -> None:
    waiting = Reading(kept.all_chunks)
    kept.add("a")
    assert waiting.ended == []
    kept.spool.end()
    assert waiting.end() == ""
