"""Whether this node has been seen to be equal to the primary, and what has put that in doubt since (DESIGN §8, DOMAIN §2)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, func, select
from sqlalchemy.engine import Connection

from common import nodestate
from common.bookkeeping import outbox
from common.nodestate import NodeState

_LOOK_S: Final = 2.0
_AT_ONCE: Final = 5_000
_EDITED: Final = "changes of listed tables were made on this node itself"


@dataclass(frozen=True)
class Compared:
    """What a comparison with the primary found. `edits`: the rows of this node's own outbox at its position; `installed_ms`: by which
    `install` it read the tables."""

    equal: bool
    edits: Sequence[int]
    installed_ms: int


class Proof:
    """The applier's thread owns it. `doubt`: why it has to be compared anew, as a clause; None where it was seen to be equal, and the
    log has led on from there, or where it never was."""

    def __init__(self) -> None:
        self.proven = self.equal_once = False
        self.doubt: str | None = None
        self._edits = 0
        self._looked = 0.0

    def load(self, state: NodeState) -> None:
        """As the database has it."""
        self.proven, self.equal_once = state.proven_ms is not None, state.equal_once
        self.doubt, self._edits = state.doubt, state.edits

    def look(self, connection: Connection) -> None:
        """Now and then, in a transaction of the caller's, who commits it: whether somebody has changed listed tables here."""
        if time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        state = nodestate.read(connection)
        if state is not None:
            self.load(state)  # `install` may have run, and may be what puts it in doubt
        newer = self._newer(connection)
        if newer is not None:
            self.proven, self._edits = False, newer
            self.doubt = self.doubt if nodestate.unlike(self.doubt) else _EDITED  # what is known counts more
            nodestate.save(connection, proven_ms=None, doubt=self.doubt, edits=newer)

    def doubted(self, connection: Connection, reason: str) -> None:
        """It has to be compared anew; commits."""
        self.proven, self.doubt = False, reason
        self._save(connection, proven_ms=None, doubt=reason, edits=self._edits)

    def compared(self, connection: Connection, found: Compared) -> None:
        """Take in what a comparison found; commits."""
        if not found.equal:
            self.doubted(connection, nodestate.DIFFERS)
            return
        self.equal_once = True
        if found.installed_ms != nodestate.installed_ms(connection):
            self._save(connection, equal_once=1)
            return
        forget_edits(connection, found.edits)
        self._edits = 0
        newer = self._newer(connection)
        if newer is not None:  # somebody did since
            self.proven, self.doubt, self._edits = False, _EDITED, newer
            self._save(connection, equal_once=1, edits=newer, doubt=_EDITED, proven_ms=None)
            return
        self.proven, self.doubt = True, None
        self._save(connection, equal_once=1, edits=0, doubt=None, proven_ms=nodestate.now_ms())

    def _newer(self, connection: Connection) -> int | None:
        wanted = select(func.max(outbox.c.id)).where(outbox.c.id > self._edits, outbox.c.row_count > 0)
        found: int | None = connection.execute(wanted).scalar()
        return found

    def _save(self, connection: Connection, **values: Any) -> None:
        nodestate.save(connection, **values)
        connection.commit()


def forget_edits(connection: Connection, edits: Sequence[int]) -> None:
    """Rows of this node's own outbox that made no difference, or were undone: never to be published, should it become the primary."""
    for start in range(0, len(edits), _AT_ONCE):
        connection.execute(delete(outbox).where(outbox.c.id.in_(edits[start : start + _AT_ONCE])))
