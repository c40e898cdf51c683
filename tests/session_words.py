"""The two sides of a session, in this process and without a broker: what a primary says, and a secondary that hears it."""

import threading
import time
from functools import partial
from typing import Any

from msgspec.structs import replace

from common.broker import ConsumeLink, Delivery, PublishLink
from common.changes import SEPARATOR
from common.digests import whole
from common.session import Begin, Buckets, Cancel, Chunk, ColumnShape, End, Manifest, Mode, Rows, Said, TableShape, new_id
from common.stop import Stop
from common.wire import MessageKind, encode_body
from consumer.answers import Answers
from consumer.proof import Compared
from consumer.synchronizer import Begun, Over, Synchronizer
from tests.harness import Cluster, wait_for
from tests.pipeline import _built

SCHEMA = ("CREATE TABLE item (id BIGINT PRIMARY KEY, note VARCHAR(40))",)
ROWS = [(1, "one"), (2, "two")]
HASH = b"\5" * 32
AT = 7  # the position of sessions here


class Primary:
    """What the primary says in one session, number by number; `say` is as another would say it."""

    def __init__(self, cluster: Cluster, mode: Mode = Mode.SYNC, *, full: bool = False) -> None:
        self._cluster = cluster
        self.id = new_id()
        self._parts, lists = _built(cluster.primary)
        table = lists.tables["item"]
        names = tuple(column.name for column in table.columns)
        shape = TableShape("item", tuple(ColumnShape(one.name, one.shape) for one in table.columns), 1, 1)
        dialect = self._parts.database.dialect
        with self._parts.database.connect(read_only=True) as connection:
            found = whole(dialect.buckets(connection, table, names, 1).values())
            chunks = [Chunk(0, 0, count, text) for count, text in dialect.rows(connection, table, names, 1)]
            connection.rollback()
        self.begin = Begin(1, mode, full, ("st2",), AT, HASH, (shape,))
        self.rest: list[Said] = [Manifest((found,)), *chunks, End()]

    def all(self) -> list[bytes]:
        """All that follows the first word."""
        return [self.say(said, number) for number, said in enumerate(self.rest, 2)]

    def say(
        self,
        said: Said,
        number: int = 0,
        *,
        by: str = "st1",
        kind: MessageKind = MessageKind.SESSION,
        session: bytes = b"",
        epoch: int = 1,
        ago_s: float = 0.0,
    ) -> bytes:
        writer = self._parts.writer if by == "st1" else _built(self._cluster.nodes[by])[0].writer
        clock, writer._clock = writer._clock, lambda: time.time() - ago_s
        try:
            return writer.write(
                kind, encode_body(said), epoch=epoch, sequence=number, previous=session or self.id, expires_in_s=60.0
            )
        finally:
            writer._clock = clock


class Partly(Primary):
    """A primary of whose rows one differs on the secondary: the first in key order. Its table is told in so many buckets."""

    def __init__(self, cluster: Cluster, buckets: int) -> None:
        super().__init__(cluster)
        table = _built(cluster.primary)[1].tables["item"]
        shape = replace(self.begin.tables[0], buckets=buckets)
        dialect = self._parts.database.dialect
        with self._parts.database.connect(read_only=True) as connection:
            own = dialect.buckets(connection, table, shape.names, buckets)
            width = len(next(iter(own.values())).digest)
            digests = b"".join(own[one].digest if one in own else bytes(width) for one in range(buckets))
            told = {
                one: [row for some in dialect.row_digests(connection, table, shape.names, buckets, [one]) for row in some]
                for one in own
            }
            self.bucket, key = next((one, key) for one, rows in told.items() for key, _ in rows if key.strip('"') == "1")
            chunks = [Chunk(1, 0, count, text) for count, text in dialect.rows_of(connection, table, shape.names, [key], 1)]
            connection.rollback()
        self.others = [int(key.strip('"')) for one, rows in told.items() if one != self.bucket for key, _ in rows]
        keys, found = zip(*told[self.bucket], strict=True)
        rows = Rows(1, 0, (self.bucket,), len(keys), SEPARATOR.join(f"[{one}]" for one in keys), b"".join(found), last=True)
        self.begin = replace(self.begin, tables=(shape,))
        self.rest = [Manifest((whole(own.values()),)), Buckets(0, 0, width, digests), rows, *chunks, End()]


class Secondary:
    """st2's side of sessions; what it answers goes nowhere."""

    def __init__(self, cluster: Cluster) -> None:
        self.node = cluster.nodes["st2"]
        parts, lists = _built(self.node)
        link = PublishLink(parts.settings.broker, parts.topology, client_name="st2")
        answers = Answers(link, parts.topology, parts.writer, "st1")
        self.refused: list[str] = []
        self.compared: list[Compared] = []
        self.synchronizer = Synchronizer(
            parts.database,
            parts.settings,
            parts.reader,
            lists,
            answers,
            primary="st1",
            refused=lambda exc: self.refused.append(exc.kind),
            verified=self.compared.append,
        )
        arrived = self.synchronizer.arrived
        self._from = ConsumeLink(parts.settings.broker, parts.topology, queue="q", client_name="st2", on_delivery=arrived)
        self._stop = Stop()
        self._thread = threading.Thread(target=partial(self.synchronizer.loop, self._stop, self._from))
        self._thread.start()

    def begin(self, primary: Primary, *, epoch: int = 1) -> None:
        self.synchronizer.begin(Begun(primary.id, epoch, primary.begin))

    def hear(self, *messages: bytes) -> None:
        for tag, one in enumerate(messages):
            self.synchronizer.arrived(Delivery(one, tag, None, redelivered=False, generation=1))

    def wait_heard(self, primary: Primary) -> None:
        """Until all that came was handled: what comes behind it is refused."""
        known = len(self.refused)
        self.hear(primary.say(Cancel("marks the place"), by="st3"))
        wait_for(lambda: len(self.refused) > known, "what came behind it")
        assert self.refused.pop() == "sender"

    def over(self) -> Over:
        found: Over = wait_for(self.synchronizer.over, "the session's end")
        return found

    def rows(self) -> list[tuple[Any, ...]]:
        return self.node.rows("SELECT id, note FROM item ORDER BY id")

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
