"""One session on this node, step by step: what it has found out, what it still expects, what it installs (common.session).

Nothing of the node is changed before End; then everything is, in one transaction, or nothing. That transaction may begin earlier
(consumer.streaming).
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from sqlalchemy import delete, select
from sqlalchemy.engine import Connection

from common import nodestate
from common.bookkeeping import outbox, quarantine
from common.changes import SEPARATOR, Position
from common.database import Database
from common.digests import Bucket, whole
from common.errors import Fault, MessageRefused, NotApplicable
from common.live_lists import Lists
from common.schema import Listed, ListedTable
from common.session import (
    DIGESTS,
    Answer,
    Begin,
    Buckets,
    Chunk,
    Differ,
    Done,
    End,
    Lack,
    Manifest,
    Mode,
    Phase,
    Result,
    Rows,
    Said,
    TableCompared,
    TableShape,
    Want,
    mask_of,
)
from common.settings import Settings
from common.wire import Reader, Verified
from consumer import install
from consumer.differences import Packed, Part, Tally, compare, differing, keyed
from consumer.inlet import Inlet
from consumer.proof import Compared, forget_edits
from consumer.proving import Claim, Differing, changes_nothing_else, prove
from consumer.scratch import Difference, Written
from consumer.spool import Spool
from consumer.streaming import Streaming


def unlike(begin: Begin, listed: Listed, node: str) -> str | None:
    """Why this node's version, schema or lists do not allow the session, where they differ from the primary's; None where they do."""
    if begin.digests != DIGESTS:
        return "its version of stsync makes other digests than the primary's; run the same version on all nodes"
    found = [_unlike(shape, listed.get(shape.name)) for shape in begin.tables]
    here_only = listed.keys() - {shape.name for shape in begin.tables}
    found += [f"table {name} is listed on {node} and not on the primary" for name in sorted(here_only)]
    reasons = [reason for reason in found if reason]
    if not reasons:
        return None
    more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
    return f"the schema or the list of tables differs from the primary's: {'; '.join(reasons[:3])}{more}"


def _unlike(shape: TableShape, table: ListedTable | None) -> str | None:
    if table is None:
        return f"table {shape.name} does not exist here, or is not in this node's sync_tables.conf"
    here = {column.name: column.shape for column in table.columns}
    for column in shape.columns:
        if column.name not in here:
            return f"table {shape.name} has no column {column.name} here"
        if here[column.name] != column.type:
            return f"table {shape.name}: column {column.name} is {here[column.name]} here and {column.type} on the primary"
    only = [name for name in here if name not in set(shape.names)]
    if only:
        return f"table {shape.name} has a column {only[0]} here, which the primary does not have or excludes"
    key = tuple(column.name for column in table.key)
    if key != shape.names[: shape.key]:
        return f"table {shape.name} has the primary key ({', '.join(key)}) here"
    if table.where != shape.where:
        return (
            f"table {shape.name} has the row filter {table.where or 'none'} here and {shape.where or 'none'} on the primary"
        )
    return None


class NodeSession:
    """See the module. `snapshot`: where it stands already, to verify; else one is taken. One thread uses it."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        reader: Reader,
        lists: Lists,
        begin: Begin,
        session: bytes,
        epoch: int,
        snapshot: Connection | None,
    ) -> None:
        self._database = database
        self._settings = settings
        self._lists = lists
        self._begin = begin
        self.id = session
        self.epoch = epoch
        self.mode = begin.mode
        self.inlet = Inlet(received=1)  # Begin was the first
        self.phase = Phase.PAUSING
        self.rows = 0
        self.done: Done | None = None
        self.installed = False
        self.heard = False  # anything but its beginning
        self._began = time.monotonic()
        self._snapshot = snapshot
        self._edits: list[int] = []
        self._own: list[dict[int, Bucket]] = []
        self._manifest = Manifest(())
        self._differ: list[int] = []
        self._whole: frozenset[int] = frozenset()
        self._wants: dict[int, list[int]] = {}
        self._differing = Differing()
        self._part: Part | None = None
        self._tallies: dict[int, Tally] = {}
        self._extra: dict[int, list[Packed]] = {}
        self._missing: dict[int, Packed] = {}
        self._different: dict[int, Packed] = {}
        self._spool = Spool(reader.open)
        self._streaming: Streaming | None = None
        self._messages: dict[int, Verified] = {}

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    @property
    def differs(self) -> bool:
        """Whether this node is known not to be equal to the primary."""
        return bool(self._differ)

    @property
    def compared(self) -> Compared:
        """What was found, at the session's position."""
        return Compared(not self._differ, self._edits, self._lists.installed_ms)

    def close(self) -> None:
        """Give back what it holds."""
        self._spool.close()
        if self._streaming is not None:
            self._streaming.join()
        self._leave_snapshot()

    def _leave_snapshot(self) -> None:
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            snapshot.invalidate()  # it may be dead, and closing a dead one politely would fail
            snapshot.close()

    def remember(self, number: int, message: Verified) -> None:
        """The sealed message with this number, for what is kept as it came."""
        if number > self.inlet.received:
            self._messages[number] = message

    def look(self) -> list[Answer]:
        """Take the digests of everything here; there is nothing to answer yet."""
        if self._snapshot is None:
            self._snapshot = self._database.open(read_only=True)
        with self._database.guard():
            self._edits = list(self._snapshot.execute(select(outbox.c.id)).scalars())
            self._own = [
                self._database.dialect.buckets(self._snapshot, self._table(shape), shape.names, shape.buckets)
                for shape in self._begin.tables
            ]
        return []

    def handle(self, number: int, said: Said) -> list[Answer]:
        """What the primary said next; the answers. Raises MessageRefused for what does not fit, NotApplicable, Unavailable and
        OSError."""
        message = self._messages.pop(number, None)
        if isinstance(said, Manifest):
            return self._compare_tables(said)
        if isinstance(said, Buckets):
            return self._compare_buckets(said)
        if isinstance(said, Rows):
            return self._compare_rows(said)
        if isinstance(said, Chunk):
            self._take(said, message)
            return []
        if isinstance(said, End):
            self._finish()
            return []
        raise MessageRefused("malformed", "a session's message where none such is due")

    def _table(self, shape: TableShape) -> ListedTable:
        return self._lists.tables[shape.name]

    def _shape(self, place: int) -> TableShape:
        if place >= len(self._begin.tables):
            raise MessageRefused("malformed", "a session's message about a table that is none of its tables")
        return self._begin.tables[place]

    def _compare_tables(self, said: Manifest) -> list[Answer]:
        if len(said.tables) != len(self._begin.tables):
            raise MessageRefused("malformed", "a manifest of other tables than those that the session began with")
        self.phase, self._manifest = Phase.MANIFEST, said
        own = [whole(buckets.values()) for buckets in self._own]
        self._differ = [
            place
            for place, (here, there) in enumerate(zip(own, said.tables, strict=True))
            if here != there or self._begin.full
        ]
        self._whole = frozenset(place for place in self._differ if not own[place].rows)
        if self.mode is not Mode.SYNC:
            for place in self._whole:
                self._tallies[place] = Tally(missing=said.tables[place].rows)
        elif self._differ and self._whole.issuperset(self._differ) and not self._database.dialect.one_writer:
            self._leave_snapshot()
            self._streaming = Streaming(self._spool, self._install)
            self._streaming.start()
        return [Differ(tuple(self._differ), tuple(sorted(self._whole)))]

    def _compare_buckets(self, said: Buckets) -> list[Answer]:
        shape = self._shape(said.table)
        if said.table not in self._differ or said.table in self._whole:
            return []
        own, wants = self._own[said.table], self._wants.setdefault(said.table, [])
        count = len(said.digests) // said.width
        here = (
            list(range(said.first, said.first + count))
            if self._begin.full
            else differing(own, said.first, said.width, said.digests)
        )
        wants += here
        self._differing.add(said.table, shape, {place: said.digest_of(place) for place in here})
        if said.first + count < shape.buckets:
            return []
        return [Want(said.table, mask_of(wants, shape.buckets))]

    def _compare_rows(self, said: Rows) -> list[Answer]:
        shape = self._shape(said.table)
        self.phase = Phase.CHUNKS
        if set(said.buckets).isdisjoint(self._wants.get(said.table, ())):
            return []
        if self._part is None or self._part.number != said.part:
            self._part = Part(said.part, said.table, said.buckets)
        self._part.add(said, shape)
        if not said.last:
            return []
        part, self._part = self._part, None
        lacked = self._compare_part(part, shape)
        if self.mode is not Mode.SYNC:
            return []
        return [Lack(part.number, mask_of(lacked, len(part.keys)))]

    def _compare_part(self, part: Part, shape: TableShape) -> list[int]:
        """The places of rows that are wanted. Of buckets in it that only others want all rows are equal here."""
        if self._snapshot is None:
            raise Fault("a session without its snapshot")
        with self._database.guard():
            portions = self._database.dialect.row_digests(
                self._snapshot, self._table(shape), shape.names, shape.buckets, part.buckets
            )
            found = compare(part, portions, shape)
        if self._begin.full:
            missing = set(found.missing)
            found.different[:] = [place for place in range(len(part.keys)) if place not in missing]
        self._tallies.setdefault(part.table, Tally()).add(part, found)
        self._extra.setdefault(part.table, []).extend(found.extra)
        self._missing[part.number] = Packed([part.texts[place] for place in found.missing])
        self._different[part.number] = Packed([part.texts[place] for place in found.different])
        return [*found.missing, *found.different]

    def _take(self, said: Chunk, message: Verified | None) -> None:
        """Keep what is wanted of the rows that are sent to all."""
        self.phase = Phase.CHUNKS
        self._shape(said.table)
        wanted = said.table in self._whole or said.part in self._missing
        if not wanted or message is None:
            return
        self._spool.add(said, message)
        self.rows += said.count

    def _finish(self) -> None:
        self.phase = Phase.INSTALLING
        compared = tuple(
            self._tallies[place].compared(self._begin.tables[place].name)
            for place in sorted(self._tallies)
            if self._tallies[place].rows
        )
        if self.mode is not Mode.SYNC:
            self.done = Done(Result.DONE, None, compared, self.rows, self.seconds)
            return
        self._leave_snapshot()
        if self._begin.careful:
            self._refuse_to_lose(compared)
        self._spool.end()
        written = self._install() if self._streaming is None else self._streaming.finish()
        self.installed = True
        tables = tuple(
            TableCompared(name, one.inserted, one.deleted, one.updated)
            for name, one in sorted(written.items())
            if any(vars(one).values())
        )
        self.done = Done(Result.DONE, None, tables, self.rows, self.seconds)

    def _refuse_to_lose(self, compared: Iterable[TableCompared]) -> None:
        """Where nobody has ever said that the primary is right and this node is not, what stands here only is not taken from it."""
        lost = {one.table: one.extra + one.different for one in compared if one.extra or one.different}
        if lost:
            tables = ", ".join(f"{rows} rows of {table}" for table, rows in sorted(lost.items())[:5])
            raise NotApplicable(
                f"this node has never been synchronized, and has what the primary lacks or has otherwise ({tables}); look at it with "
                "`stsync sync --dry-run` on the primary, and if the primary is right, run `stsync sync` there"
            )

    def _install(self) -> Mapping[str, Written]:
        differences = [self._difference(place) for place in self._differ]
        with self._database.connect() as connection:
            self._database.dialect.mark_session(connection)
            self._database.dialect.wait_for_disk(connection)
            finish = partial(self._prove_and_move, connection, differences)
            return install.run(self._database, connection, differences, self._lists.tables, finish)

    def _difference(self, place: int) -> Difference:
        shape = self._begin.tables[place]

        def deletes() -> Iterator[tuple[int, str]]:
            return ((one.count, one.text()) for one in self._extra.get(place, ()))

        def updates() -> Iterator[tuple[int, str]]:
            return iter(()) if place in self._whole else self._rows_of(place, shape, self._different)

        def inserts() -> Iterator[tuple[int, str]]:
            if place in self._whole:
                return ((chunk.count, chunk.rows) for chunk in self._chunks(place))
            return self._rows_of(place, shape, self._missing)

        return Difference(self._table(shape), shape.names, deletes, updates, inserts)

    def _chunks(self, place: int) -> Iterator[Chunk]:
        return self._spool.chunks(place, self._manifest.tables[place].rows)

    def _rows_of(self, place: int, shape: TableShape, of: dict[int, Packed]) -> Iterator[tuple[int, str]]:
        """Those of the chunks' rows that are some of these, part by part."""
        number, keys = -1, frozenset[object]()
        for chunk in self._chunks(place):
            if chunk.part != number:
                wanted = of[chunk.part]
                number, keys = chunk.part, frozenset(keyed(wanted.text(), wanted.count, shape) if wanted.count else ())
            if not keys:
                continue
            texts = chunk.rows.split(SEPARATOR)
            some = [text for text, key in zip(texts, keyed(chunk.rows, chunk.count, shape), strict=True) if key in keys]
            if some:
                yield len(some), SEPARATOR.join(some)

    def _prove_and_move(self, connection: Connection, differences: Sequence[Difference], in_place: bool) -> None:
        """The end of the transaction that installs: the tables are equal, and that is where the log goes on (TRAPS 7)."""
        if self._streaming is not None:
            self._streaming.wait_for_all(connection)
        dialect = self._database.dialect
        undisturbed = set(self._edits).issuperset(connection.execute(select(outbox.c.id)).scalars())
        only_differing = in_place and undisturbed and changes_nothing_else(dialect, connection, differences)
        for place in self._differ:
            shape = self._begin.tables[place]
            claim = Claim(self._table(shape), shape, self._manifest.tables[place], self._differing.of(place))
            prove(dialect, connection, claim, only_differing=only_differing)
        found = nodestate.read(connection)
        if found is None or found.installed_ms != self._lists.installed_ms:
            raise NotApplicable("`stsync install` has run on this node since the session began")
        connection.execute(delete(quarantine))
        forget_edits(connection, self._edits)
        position = Position(self.epoch, self._begin.sequence, self._begin.hash)
        nodestate.save(
            connection,
            epoch=position.epoch,
            sequence=position.sequence,
            hash=position.hash,
            head_epoch=position.epoch,
            head_sequence=position.sequence,
            state=nodestate.State.CATCHING_UP,
            reason=None,
            last_full_sync_ms=nodestate.now_ms(),
            installed_session=self._begin.number,
            proven_ms=nodestate.now_ms(),
            equal_once=1,
            doubt=None,
            edits=0,
        )
