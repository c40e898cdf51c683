"""Publishes the journal in order, confirms in a pipeline, and begins again at the first unconfirmed batch (TRAPS 8, 22)."""

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import structlog

from common.broker import PublishLink
from common.database import Database
from common.topology import Topology
from publisher import journal
from publisher.composer import Batch

_PAGE = 200
_PAGE_BYTES = 8 << 20
_RECENT_BYTES = 32 << 20


class Posted(NamedTuple):
    """A message of another sort than batches, with where it goes."""

    exchange: str
    routing_key: str
    message: bytes


class Sender:
    """Knows which batch goes next. The relay hands over what it just journaled; everything else is read from the journal.

    `offer` and `pump` are called by the relay's thread and by the sender's own; `confirmed_up_to` and `rewind` by the link's.
    A lock keeps two of them from publishing at once, so that batches leave in sequence.
    """

    def __init__(self, database: Database, topology: Topology, published: int, head: int) -> None:
        self._database = database
        self._topology = topology
        self._log = structlog.get_logger("sender")
        self._link: PublishLink | None = None
        self._pumping = threading.Lock()
        self._asked = False
        self._state = threading.Lock()
        self._wake = threading.Event()
        self._confirmed = published
        self._next = published + 1
        self._head = head
        self._republished = head  # an earlier process may have published up to here
        self._recent: OrderedDict[int, bytes] = OrderedDict()
        self._recent_bytes = 0
        self._between: deque[tuple[int, tuple[Posted, ...]]] = deque()

    def use(self, link: PublishLink) -> None:
        """Publish through this link from now on."""
        self._link = link

    @property
    def confirmed(self) -> int:
        """The last sequence that the broker confirmed."""
        return self._confirmed

    @property
    def republished(self) -> int:
        """Above this sequence nothing was published twice."""
        return self._republished

    def offer(self, batches: Iterable[Batch], head: int) -> None:
        """New batches stand in the journal, up to `head`; publish at once what the link has room for."""
        with self._state:
            for batch in batches:
                self._recent[batch.sequence] = batch.message
                self._recent_bytes += len(batch.message)
            while self._recent_bytes > _RECENT_BYTES:
                self._recent_bytes -= len(self._recent.popitem(last=False)[1])
            self._head = max(self._head, head)
        self.pump()

    def after(self, sequence: int, posted: Sequence[Posted]) -> None:
        """Publish these, too, behind the batch with this sequence, and before the next one where that is not on its way already; not
        again where the link is lost."""
        with self._state:
            self._between.append((sequence, tuple(posted)))
        self.pump()

    @property
    def holds_back(self) -> bool:
        """Whether something that is to go out between batches is not yet."""
        return bool(self._between)

    def forget_between(self) -> None:
        """What was to be published between batches, and is not yet, is not wanted any more."""
        with self._state:
            self._between.clear()

    def pump(self) -> None:
        """Publish as far as the link has room."""
        self._asked = True
        # Who holds it may have seen the old head, and looks again once it let it go; nobody waits for it.
        while self._asked and self._pumping.acquire(blocking=False):
            self._asked = False
            try:
                while self._publish_page():
                    continue
            finally:
                self._pumping.release()

    def confirmed_up_to(self, sequence: int) -> None:
        """The broker has everything up to here."""
        with self._state:
            self._confirmed = max(self._confirmed, sequence)
            while self._recent and next(iter(self._recent)) <= self._confirmed:
                self._recent_bytes -= len(self._recent.popitem(last=False)[1])

    def rewind(self) -> None:
        """The link was lost: what was not confirmed goes out again, the same bytes under the same sequence."""
        with self._state:
            self._republished = max(self._republished, self._next - 1)
            self._next = self._confirmed + 1
        self._wake.set()

    def wait(self, timeout_s: float) -> None:
        """Wait until there may be something to do."""
        self._wake.wait(timeout_s)
        self._wake.clear()

    def poke_if_waiting(self) -> None:
        """The link has room again: make `wait` return if there is anything to send."""
        if self._next <= self._head or self._between:
            self._wake.set()

    def poke(self) -> None:
        """Make `wait` return."""
        self._wake.set()

    def _publish_page(self) -> bool:
        """Publish some batches; False when there is nothing more to do now."""
        link = self._link
        with self._state:
            if not self._publish_between():
                return False
            first, head = self._next, self._head
        if link is None or first > head:
            return False
        room = link.room()
        if room <= 0:
            return False
        messages = self._messages(first, min(room, head - first + 1, _PAGE))
        if not messages:
            return self._after_hole(first, head)
        for sequence, message in messages:
            with self._state:
                if self._next != sequence:
                    return True  # rewound meanwhile
                if not self._publish_between() or not link.publish(
                    self._topology.events_exchange, "", message, token=sequence
                ):
                    return False
                self._next = sequence + 1
        return True

    def _publish_between(self) -> bool:
        """What stands between the batches, as far as it is due; False without room."""
        while self._between and self._between[0][0] < self._next:
            sequence, posted = self._between[0]
            for place, one in enumerate(posted):
                if self._link is None or not self._link.publish(
                    one.exchange, one.routing_key, one.message, persistent=False
                ):
                    self._between[0] = (sequence, posted[place:])
                    return False
            self._between.popleft()
        return True

    def _messages(self, first: int, count: int) -> list[tuple[int, bytes]]:
        with self._state:
            found = []
            for sequence in range(first, first + count):
                message = self._recent.get(sequence)
                if message is None:
                    break
                found.append((sequence, message))
        if found:
            return found
        with self._database.connect(read_only=True) as connection:
            return journal.read(connection, first, count, _PAGE_BYTES)

    def _after_hole(self, first: int, head: int) -> bool:
        """The journal lacks what is due next (somebody deleted it; it never prunes the unpublished): go on after the hole,
        and the secondaries will ask for a full synchronization."""
        with self._database.connect(read_only=True) as connection:
            available = journal.first_sequence(connection, first) or head + 1
        if available != first:
            self._log.error(
                "unpublished_batches_missing", first=first, next=available, effect="secondaries need a full sync"
            )
        with self._state:
            if self._next == first:
                self._next = available
        return True
