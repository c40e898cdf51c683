"""What the primary says in a session: numbered, sealed once for all, kept until it is over, and sent again to who lacks it."""

import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

from common.bounds import as_sentence
from common.broker import PublishLink
from common.session import Alive, Cancel, Said
from common.topology import EVERY_NODE, Topology
from common.wire import EVERYONE, MessageKind, Writer, encode_body

_ON_THE_WAY_BYTES = 8 << 20  # not confirmed by the broker
_AHEAD_BYTES = 24 << 20  # not received by the slowest node: its queue and its memory hold it
_AGAIN_AT_ONCE = 64


class Sent:
    """What the link gives back once the broker has a message of a session."""

    __slots__ = ("generation", "size")

    def __init__(self, generation: int, size: int) -> None:
        self.generation = generation
        self.size = size


class Outlet:
    """One a session. `node`: the only one that it is for; None: all. `wait` is called while there is no room, and raises what ends
    the session. The session's thread speaks, another one may say that it is alive, the link's confirms."""

    def __init__(
        self,
        link: PublishLink,
        topology: Topology,
        writer: Writer,
        *,
        session: bytes,
        epoch: int,
        node: str | None,
        lifetime_s: float,
        wait: Callable[[], None],
    ) -> None:
        self._link = link
        self._topology = topology
        self._writer = writer
        self._session = session
        self._epoch = epoch
        self._node = node
        self._lifetime_s = lifetime_s
        self._wait = wait
        self._file = tempfile.TemporaryFile(prefix="stsync-session-")  # noqa: SIM115 (closed by `close`)
        self._ends = [0]
        self._guard = threading.Lock()
        self._generation = 0
        self._on_the_way = 0
        self._slowest: Callable[[], int | None] = lambda: 0
        self.bytes = 0

    @property
    def sent(self) -> int:
        """The number of the last message."""
        return len(self._ends) - 1

    def pace(self, slowest: Callable[[], int | None]) -> None:
        """Go no further ahead than so of the number up to which the slowest node has everything; None: nobody takes part any more."""
        self._slowest = slowest

    def compose(self, said: Said) -> bytes:
        """The message, numbered, and kept."""
        message = self._message(self.sent + 1, said, self._lifetime_s)
        self._file.seek(self._ends[-1])
        self._file.write(message)
        self._ends.append(self._ends[-1] + len(message))
        self.bytes += len(message)
        return message

    def say(self, said: Said) -> int:
        """Say it to all, once there is room, which nobody waits for where nobody listens any more; its size in bytes."""
        message = self.compose(said)
        while (slowest := self._slowest()) is not None:
            ahead = self._ends[-1] - self._ends[min(slowest, self.sent)]
            if ahead <= max(_AHEAD_BYTES, len(message)) and self._publish(self._key, message):
                break
            self._wait()
        return len(message)

    def again(self, node: str, first: int) -> None:
        """Send a node what it lacks from this number on, some of it."""
        for number in range(max(1, first), min(self.sent, first + _AGAIN_AT_ONCE - 1) + 1):
            self._file.seek(self._ends[number - 1])
            message = self._file.read(self._ends[number] - self._ends[number - 1])
            if not self._publish(node, message):
                return

    def alive(self, heard: Mapping[str, int]) -> None:
        """Say that the session goes on."""
        message = self._message(0, Alive(self.sent, dict(heard)), 60.0)
        self._link.publish(self._topology.sessions_exchange, self._key, message, persistent=False)

    def cancel(self, reason: str) -> None:
        """Say that the session ends without a change where nothing was installed yet."""
        message = self._message(0, Cancel(as_sentence(reason)), self._lifetime_s)
        self._link.publish(self._topology.sessions_exchange, self._key, message, persistent=False)

    def confirmed(self, sent: Sent) -> None:
        """The broker has it."""
        with self._guard:
            if sent.generation == self._generation:
                self._on_the_way -= sent.size

    def reset(self) -> None:
        """The link was lost: who lacks what was on its way asks for it."""
        with self._guard:
            self._generation += 1
            self._on_the_way = 0

    def close(self) -> None:
        """Give the disk's space back."""
        with suppress(OSError):  # what found no room is written once more; it is closed all the same
            self._file.close()

    @property
    def _key(self) -> str:
        return self._node or EVERY_NODE

    def _message(self, number: int, said: Said, lifetime_s: float) -> bytes:
        return self._writer.write(
            MessageKind.SESSION,
            encode_body(said),
            epoch=self._epoch,
            sequence=number,
            previous=self._session,
            audience=self._node or EVERYONE,
            expires_in_s=lifetime_s,
        )

    def _publish(self, key: str, message: bytes) -> bool:
        """Half of the link's room is the log's."""
        with self._guard:
            if self._on_the_way > _ON_THE_WAY_BYTES or self._link.room() <= 1:
                return False
            self._on_the_way += len(message)
            token = Sent(self._generation, len(message))
        if self._link.publish(self._topology.sessions_exchange, key, message, token=token, persistent=False):
            return True
        with self._guard:
            if token.generation == self._generation:
                self._on_the_way -= len(message)
        return False
