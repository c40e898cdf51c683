"""The primary's pulse: at an interval, signed, where the log stands, so that a lost tail shows (TRAPS 9).

It only reads, in a thread of its own: whatever else waits, for a program that holds SQLite's write lock perhaps, the secondaries
go on hearing the primary.
"""

from collections.abc import Callable

from sqlalchemy.engine import Connection

from common import nodestate
from common.broker import PublishLink
from common.changes import Position
from common.database import Database
from common.settings import Settings
from common.stop import Stop
from common.topology import Topology
from common.wire import Heartbeat, MessageKind, Writer, encode_body
from publisher import journal

_LIFETIMES = 10  # a heartbeat that is older than so many intervals says nothing any more


class Pulse:
    """Publishes heartbeats. `head` is the relay's position, `republished` the sender's (see common.wire.Heartbeat), `number` the
    first that no earlier process used (common.nodestate.next_beat)."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        topology: Topology,
        writer: Writer,
        link: PublishLink,
        *,
        number: int,
        head: Callable[[], Position],
        republished: Callable[[], int],
    ) -> None:
        self._database = database
        self._settings = settings
        self._topology = topology
        self._writer = writer
        self._link = link
        self._head = head
        self._republished = republished
        self._number = number

    def loop(self, stop: Stop) -> None:
        """Beat until stop; raises Unavailable when the database is away."""
        with self._database.connect(read_only=True) as connection:
            while not stop.is_set():
                self._beat(connection)
                stop.wait(self._settings.intervals.heartbeat_s)

    def _beat(self, connection: Connection) -> None:
        head, lifetime_s = self._head(), _LIFETIMES * self._settings.intervals.heartbeat_s
        first = journal.first_sequence(
            connection
        )  # read after the head: a journal that seems to begin after it is past retention
        published = nodestate.published(connection)
        connection.rollback()
        beat = Heartbeat(self._number, head.sequence, head.hash, first, published, self._republished())
        self._number += 1
        message = self._writer.write(
            MessageKind.HEARTBEAT, encode_body(beat), epoch=head.epoch, sequence=head.sequence, expires_in_s=lifetime_s
        )
        expiration_ms = int(lifetime_s * 1000)
        self._link.publish(self._topology.events_exchange, "", message, expiration_ms=expiration_ms, persistent=False)
