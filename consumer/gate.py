"""The gate: position × verified batch → apply, hold, drop or refuse. Pure; every rule of order stands here.

1. A batch of another sender than the primary is refused (`sender`): only the primary writes the log.
2. A batch of a lower epoch than the position's is refused (`epoch`): a former primary that does not know it (TRAPS 35).
3. The position's own sequence with another hash: the primary's history is not the one this node followed.
4. A sequence at or below the position is dropped: it is here already (TRAPS 8, 10).
5. A sequence above the next is held: something is missing before it (TRAPS 10, 11).
6. The next sequence must name the position's hash as its predecessor, else the histories differ (as in 3).
7. A change set begins with a batch marked first and is complete with one marked last (TRAPS 1); anything else is malformed.
"""

from dataclasses import dataclass, field
from enum import Enum

from common.changes import Position
from common.errors import MessageRefused, NeedsFullSync
from common.wire import Header, Verified


class Verdict(Enum):
    """What to do with a batch."""

    APPLY = "apply"
    HOLD = "hold"
    DROP = "drop"


def judge(position: Position, primary: str, header: Header, hash_: bytes) -> Verdict:
    """Rules 1 to 6; raises MessageRefused and NeedsFullSync."""
    if header.sender != primary:
        raise MessageRefused("sender", f"a batch of {header.sender!r}; the primary is {primary!r}")
    if header.epoch < position.epoch:
        raise MessageRefused("epoch", f"a batch of epoch {header.epoch}; this node is in epoch {position.epoch}")
    if header.sequence == position.sequence and position.sequence and hash_ != position.hash:
        raise NeedsFullSync(_fork(position.sequence))
    if header.sequence <= position.sequence:
        return Verdict.DROP
    if header.sequence > position.sequence + 1:
        return Verdict.HOLD
    if header.previous != position.hash:
        raise NeedsFullSync(_fork(position.sequence))
    return Verdict.APPLY


def _fork(sequence: int) -> str:
    return (
        f"the primary's history up to sequence {sequence} is not the one that this node has applied "
        "(was a database restored from a backup?)"
    )


@dataclass
class Assembly:
    """Collects batches into complete change sets, in sequence; keeps what came too early within a bound of bytes.

    `position` is that of the last batch taken in, which may be ahead of what is committed; `reset` begins anew.
    """

    position: Position
    primary: str
    hold_bytes: int
    ready: list[tuple[Verified, ...]] = field(default_factory=list)
    _open: list[Verified] = field(default_factory=list)
    _held: dict[int, Verified] = field(default_factory=dict)
    _held_bytes: int = 0

    def reset(self, position: Position) -> None:
        """Forget everything and go on from a committed position."""
        self.position = position
        self.ready, self._open, self._held, self._held_bytes = [], [], {}, 0

    def offer(self, message: Verified) -> Verdict:
        """Take in a batch, and held ones that now follow; see `judge` for what it raises."""
        verdict = judge(self.position, self.primary, message.header, message.hash)
        if verdict is Verdict.APPLY:
            self._take(message)
            self._release()
        elif verdict is Verdict.HOLD:
            self._hold(message)
        return verdict

    @property
    def waiting(self) -> bool:
        """Whether batches are held for want of earlier ones."""
        return bool(self._held)

    def taken(self, count: int) -> Position:
        """The first `count` ready change sets were committed; the position after them."""
        last = self.ready[count - 1][-1]
        del self.ready[:count]
        return Position(last.header.epoch, last.header.sequence, last.hash)

    def _take(self, message: Verified) -> None:
        if message.header.first == bool(self._open):
            raise MessageRefused("malformed", f"batch {message.header.sequence} does not fit the change set it stands in")
        self._open.append(message)
        self.position = Position(message.header.epoch, message.header.sequence, message.hash)
        if message.header.last:
            self.ready.append(tuple(self._open))
            self._open = []

    def _release(self) -> None:
        while (following := self._held.pop(self.position.sequence + 1, None)) is not None:
            self._held_bytes -= following.size
            if judge(self.position, self.primary, following.header, following.hash) is Verdict.APPLY:
                self._take(following)
        for sequence in [one for one in self._held if one <= self.position.sequence]:
            self._held_bytes -= self._held.pop(sequence).size

    def _hold(self, message: Verified) -> None:
        if message.header.sequence in self._held or self._held_bytes + message.size > self.hold_bytes:
            return  # the journal has it still: catch-up brings it again
        self._held[message.header.sequence] = message
        self._held_bytes += message.size
