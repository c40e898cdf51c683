"""One session, led by the primary from its beginning to its end (common.session, DESIGN §8).

The snapshot is one transaction that sees exactly what the log has made up to the session's position: the relay drains what it
sees of the outbox, and nothing else, before anything later is drained. Writers are not blocked, and the log goes on meanwhile.
"""

import queue
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice

from msgspec.structs import replace
from sqlalchemy.engine import Connection

from common import sessions
from common.changes import SEPARATOR, Position
from common.database import Database
from common.digests import Bucket, whole
from common.errors import NotApplicable, StsyncError
from common.schema import Listed, parents_first
from common.session import (
    KEYS_TOLD,
    Answer,
    Begin,
    Buckets,
    Chunk,
    ColumnShape,
    Done,
    End,
    Manifest,
    Mode,
    Phase,
    Result,
    Rows,
    TableShape,
    buckets_for,
    places_in,
    shown_key,
)
from common.sessions import Request
from publisher.members import Member, active
from publisher.outlet import Outlet

_PART_ROWS, _MOST_PART_ROWS = 10_000, 60_000
_PARTS_AHEAD = 4
_SLICE_BUCKETS = 16_384
_PIECE = 1 << 20
_BEGIN_AGAIN_S = 5.0
_LISTEN_S = 0.05
_PARTING_S = 10.0
_CANCEL_AGAIN_S = 1.0


class SessionEndedError(StsyncError):
    """The session ends before its time; the text says why."""


@dataclass(frozen=True)
class Heard:
    """An answer of a node, as it came."""

    sender: str
    session: bytes
    number: int
    answer: Answer


@dataclass(frozen=True)
class _Part:
    """Rows of some of a table's buckets that were told: their keys, who was asked what it wants of them, and who takes all."""

    number: int
    table: int
    keys: list[str]
    asked: Sequence[Member]
    takers: Sequence[Member]


class Leader:
    """See the module. `tick` is called while it waits, with its phase: it raises SessionEndedError when the session is to end, and
    StsyncError when it cannot go on."""

    def __init__(
        self,
        database: Database,
        request: Request,
        members: Sequence[Member],
        *,
        session: bytes,
        listed: Listed,
        number: int,
        chunk_bytes: int,
        heard: "queue.SimpleQueue[Heard]",
        tick: Callable[[Phase], None],
    ) -> None:
        self._database = database
        self._request = request
        self.members = {member.name: member for member in members}
        self._listed = listed
        self._number = number
        self._chunk_bytes = chunk_bytes
        self._heard = heard
        self._tick = tick
        self.session = session
        self._shapes: tuple[TableShape, ...] = ()
        self._own: list[dict[int, Bucket]] = []
        self._part = 0
        self.looked_at = self.rows = 0
        self.phase = Phase.PAUSING
        self.position: Position | None = None

    @property
    def _mode(self) -> Mode:
        return self._request.mode

    def heard_of(self) -> dict[str, int]:
        """Up to which number each member's answers are here."""
        return {name: member.heard for name, member in self.members.items()}

    def slowest(self) -> int | None:
        """Up to which number every member that still takes part has everything; None where none does."""
        return min((member.received for member in active(self.members.values())), default=None)

    def look(self, connection: Connection) -> None:
        """What the tables are, and about how large."""
        dialect = self._database.dialect
        self._shapes = tuple(
            TableShape(
                name,
                tuple(ColumnShape(column.name, column.shape) for column in table.columns),
                len(table.key),
                buckets_for(dialect.count(connection, table)),
                table.where,
            )
            for name in parents_first(self._listed.values())
            if (table := self._listed[name])
        )

    def begin(self, position: Position) -> Begin:
        """The first word, at this position."""
        self.position = position
        nodes = tuple(self.members)
        return Begin(
            self._number,
            self._mode,
            self._request.full and self._mode is Mode.SYNC,  # else nothing is sent
            nodes,
            position.sequence,
            position.hash,
            self._shapes,
            careful=self._request.cause == sessions.FIRST,
        )

    def lead(self, snapshot: Connection, outlet: Outlet, begin_again: Callable[[Sequence[str]], None]) -> None:
        """All that follows the first word. Raises what `tick` raises; every member then has ended, or is told to."""
        self._outlet = outlet
        try:
            with self._database.guard():
                self._lead(snapshot, begin_again)
        except OSError as exc:
            self._part_with(f"the primary's disk: {exc.strerror}")
            raise
        except StsyncError as exc:
            self._part_with(str(exc))
            raise

    def _lead(self, snapshot: Connection, begin_again: Callable[[Sequence[str]], None]) -> None:
        self._own = [
            self._database.dialect.buckets(snapshot, self._listed[shape.name], shape.names, shape.buckets)
            for shape in self._shapes
        ]
        self._until_ready(begin_again)
        self._go(Phase.MANIFEST)
        self._outlet.say(Manifest(tuple(whole(buckets.values()) for buckets in self._own)))
        self._until(lambda member: member.differ is not None)
        self._go(Phase.CHUNKS)
        self._say_buckets()
        self._send_differences(snapshot)
        self._outlet.say(End())
        self._go(Phase.INSTALLING)
        self._until(lambda _member: False)
        if self._mode is not Mode.SYNC:
            self._name_missing(snapshot)
        self._go(Phase.RESUMED)

    def _name_missing(self, snapshot: Connection) -> None:
        """Some keys of the tables that are empty on a node: it was told none, for it lacks them all."""
        first: dict[str, tuple[str, ...]] = {}
        for member in self.members.values():
            done = member.done
            if done is None:
                continue
            unnamed = [one for one in done.tables if one.missing and not one.missing_keys and one.table in self._listed]
            for one in unnamed:
                first[one.table] = first.get(one.table) or self._first_keys(snapshot, one.table)
            named = tuple(replace(one, missing_keys=first[one.table]) if one in unnamed else one for one in done.tables)
            member.done = replace(done, tables=named)

    def _first_keys(self, snapshot: Connection, name: str) -> tuple[str, ...]:
        table = self._listed[name]
        with closing(self._database.dialect.rows(snapshot, table, [column.name for column in table.key], 1)) as rows:
            return tuple(shown_key(key) for _, key in islice(rows, KEYS_TOLD))

    def wait(self) -> None:
        """Listen to the members, for a moment where they say nothing."""
        self._listen(_LISTEN_S)

    def _listen(self, seconds: float) -> None:
        try:
            self._take(self._heard.get(timeout=seconds) if seconds else self._heard.get_nowait())
            while True:
                self._take(self._heard.get_nowait())
        except queue.Empty:
            pass
        for member in active(self.members.values()):
            if member.again is not None:
                first, member.again = member.again, None
                self._outlet.again(member.name, first)
        self._tick(self.phase)

    def _take(self, heard: Heard) -> None:
        member = self.members.get(heard.sender)
        if member is not None and heard.session == self.session:
            member.take(heard.number, heard.answer)

    def _go(self, phase: Phase) -> None:
        self.phase = phase
        self._listen(0.0)

    def _until(self, has_answered: Callable[[Member], bool]) -> None:
        """Wait until every member that still takes part has."""
        while not all(has_answered(member) for member in active(self.members.values())):
            self.wait()

    def _until_ready(self, begin_again: Callable[[Sequence[str]], None]) -> None:
        said = time.monotonic()
        while missing := [member.name for member in active(self.members.values()) if member.ready is None]:
            if time.monotonic() - said > _BEGIN_AGAIN_S:
                said = time.monotonic()
                begin_again(missing)
            self.wait()

    def _part_with(self, reason: str) -> None:
        """Tell those that still take part, and give them a moment to say how it ended there."""
        self.phase = Phase.FAILED
        until, said = time.monotonic() + _PARTING_S, 0.0
        while active(self.members.values()) and (now := time.monotonic()) < until:
            if now - said > _CANCEL_AGAIN_S:
                said = now
                self._outlet.cancel(reason)
            with suppress(queue.Empty):
                self._take(self._heard.get(timeout=_LISTEN_S))
        for member in active(self.members.values()):
            installs = member.phase is Phase.INSTALLING
            perhaps = "; it was installing, and may have come to its end: see `stsync verify`" if installs else ""
            member.end(Done(Result.FAILED, reason + perhaps))

    def _say(self, said: Buckets | Rows | Chunk, to: Iterable[Member]) -> None:
        try:
            size = self._outlet.say(said)
        except UnicodeEncodeError as exc:
            raise NotApplicable(
                f"table {self._shapes[said.table].name} holds a text that is not valid UTF-8 and cannot be synchronized; correct it "
                "in the table on the primary"
            ) from exc
        for member in to:
            member.bytes_sent += size
            member.chunks_sent += isinstance(said, Chunk)

    def _telling(self, place: int) -> list[Member]:
        """Members in which a table differs and is not wanted whole."""
        return [
            member
            for member in active(self.members.values())
            if member.differ is not None and place in member.differ.tables and place not in member.differ.whole
        ]

    def _say_buckets(self) -> None:
        for place, shape in enumerate(self._shapes):
            if not (telling := self._telling(place)):
                continue
            own = self._own[place]
            width = len(next(iter(own.values())).digest) if own else 1
            for first in range(0, shape.buckets, _SLICE_BUCKETS):
                upto = min(shape.buckets, first + _SLICE_BUCKETS)
                digests = b"".join(own[one].digest if one in own else bytes(width) for one in range(first, upto))
                self._say(Buckets(place, first, width, digests), telling)
        self._until(self._has_told_buckets)

    def _has_told_buckets(self, member: Member) -> bool:
        if member.differ is None:
            return False
        return all(place in member.wants for place in member.differ.tables if place not in member.differ.whole)

    def _send_differences(self, snapshot: Connection) -> None:
        """What anybody lacks, once for all: while the nodes compare the rows of some parts, the next are told already."""
        members = active(self.members.values())
        differing = {place for member in members if member.differ is not None for place in member.differ.tables}
        self.rows = sum(one.rows for place in differing for one in self._own[place].values())
        told: deque[_Part] = deque()
        for place in sorted(differing):
            for part in self._tell(snapshot, place):
                told.append(part)
                while told and (len(told) > _PARTS_AHEAD or self._has_told(told[0])):
                    self._settle(snapshot, told.popleft())
        while told:
            self._settle(snapshot, told.popleft())

    def _tell(self, snapshot: Connection, place: int) -> Iterator["_Part"]:
        """Tell the rows of a table, part by part, to those who have something else; send it whole where nobody has anything."""
        shape = self._shapes[place]
        takers = [m for m in active(self.members.values()) if m.differ is not None and place in m.differ.whole]
        telling = self._telling(place)
        if self._mode is not Mode.SYNC:
            takers = []
        if not telling:
            if takers:
                rows = self._database.dialect.rows(snapshot, self._listed[shape.name], shape.names, self._chunk_bytes)
                self._send_chunks(0, place, rows, takers)
            return
        wants = {member.name: frozenset(places_in(member.wants.get(place, b""), shape.buckets)) for member in telling}
        wanted = frozenset().union(*wants.values())
        if takers:
            wanted |= self._own[place].keys()
        for group in self._groups(place, sorted(wanted)):
            asked = [member for member in telling if not wants[member.name].isdisjoint(group)]
            part = self._tell_part(snapshot, place, group, asked, takers)
            self._listen(0.0)
            if self._mode is Mode.SYNC:
                yield part

    def _groups(self, place: int, buckets: Iterable[int]) -> Iterator[tuple[int, ...]]:
        """Buckets in portions whose rows a node compares at once."""
        group: list[int] = []
        rows = 0
        # Each is a look through the whole table, on every node.
        most = max(_PART_ROWS, min(_MOST_PART_ROWS, sum(one.rows for one in self._own[place].values()) // 8))
        for bucket in buckets:
            here = self._own[place].get(bucket)
            group.append(bucket)
            rows += here.rows if here is not None else 0
            if rows >= most:
                yield tuple(group)
                group, rows = [], 0
        if group:
            yield tuple(group)

    def _tell_part(
        self, snapshot: Connection, place: int, group: Collection[int], asked: Sequence[Member], takers: Sequence[Member]
    ) -> "_Part":
        shape = self._shapes[place]
        self._part += 1
        portions = self._database.dialect.row_digests(snapshot, self._listed[shape.name], shape.names, shape.buckets, group)
        found = [one for portion in portions for one in portion]
        self.looked_at += len(found)
        for some, last in _slices(found, self._chunk_bytes):
            keys = SEPARATOR.join([f"[{key}]" for key, _ in some])
            digests = b"".join([digest for _, digest in some])
            self._say(Rows(self._part, place, tuple(group), len(some), keys, digests, last), asked)
        return _Part(self._part, place, [key for key, _ in found], asked, takers)

    def _has_told(self, part: "_Part") -> bool:
        """Whether everybody has said what it wants of a part."""
        return all(not member.takes_part or part.number in member.lacks for member in part.asked)

    def _settle(self, snapshot: Connection, part: "_Part") -> None:
        """Send what anybody wants of a part."""
        while not self._has_told(part):
            self.wait()
        lacking = [member for member in part.asked if member.takes_part]
        masks = [member.lacks.pop(part.number) for member in lacking]
        wanted = {one for mask in masks for one in places_in(mask, len(part.keys))}
        keys = part.keys if part.takers else [part.keys[one] for one in sorted(wanted)]
        if keys:
            shape = self._shapes[part.table]
            table = self._listed[shape.name]
            rows = self._database.dialect.rows_of(snapshot, table, shape.names, keys, self._chunk_bytes)
            self._send_chunks(part.number, part.table, rows, [*lacking, *part.takers])

    def _send_chunks(self, part: int, place: int, rows: Iterator[tuple[int, str]], to: Sequence[Member]) -> None:
        for count, text in rows:
            self.looked_at += 0 if part else count
            for start in range(0, len(text), _PIECE):
                more = start + _PIECE < len(text)
                self._say(Chunk(part, place, 0 if more else count, text[start : start + _PIECE], more), to)


def _slices(found: list[tuple[str, bytes]], max_bytes: int) -> Iterator[tuple[list[tuple[str, bytes]], bool]]:
    """Keys and digests in portions of about so many bytes, and whether each is the last; one at least."""
    some: list[tuple[str, bytes]] = []
    size = 0
    for one in found:
        if some and size + len(one[0]) > max_bytes:
            yield some, False
            some, size = [], 0
        some.append(one)
        size += len(one[0]) + len(one[1])
    yield some, True
