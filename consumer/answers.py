"""What this node answers in a session: numbered, and said again until the primary tells that it has it (common.session)."""

import threading
import time

from common.broker import PublishLink
from common.session import Answer
from common.topology import Topology
from common.wire import MessageKind, Writer, encode_body

_AGAIN_S = 2.0
_EXPIRES_S = 60.0


class Answers:
    """Every thread may call. Between sessions it says nothing."""

    def __init__(self, link: PublishLink, topology: Topology, writer: Writer, primary: str) -> None:
        self._link = link
        self._topology = topology
        self._writer = writer
        self._primary = primary
        self._guard = threading.Lock()
        self._session = b""
        self._epoch = 0
        self._number = 0
        self._unheard: dict[int, tuple[float, Answer]] = {}

    def open(self, session: bytes, epoch: int) -> None:
        """Answer in this session from now on."""
        with self._guard:
            self._session, self._epoch, self._number = session, epoch, 0
            self._unheard.clear()

    @property
    def session(self) -> bytes:
        """The id of the last session; empty before the first."""
        return self._session

    def say(self, answer: Answer) -> None:
        """Answer, and go on doing so until it was heard."""
        with self._guard:
            self._number += 1
            self._unheard[self._number] = (time.monotonic(), answer)
            self._send(self._number, answer)

    def tell(self, answer: Answer) -> None:
        """Answer something of which only the newest counts."""
        with self._guard:
            if self._session:
                self._send(0, answer)

    def heard(self, number: int) -> None:
        """The primary has all up to this number; what it should have by now is said again."""
        now = time.monotonic()
        with self._guard:
            for one in [one for one in self._unheard if one <= number]:
                del self._unheard[one]
            for one, (at, answer) in list(self._unheard.items()):
                if now - at > _AGAIN_S:
                    self._unheard[one] = (now, answer)
                    self._send(one, answer)

    def _send(self, number: int, answer: Answer) -> None:
        message = self._writer.write(
            MessageKind.ANSWER,
            encode_body(answer),
            epoch=self._epoch,
            sequence=number,
            previous=self._session,
            audience=self._primary,
            expires_in_s=_EXPIRES_S,
        )
        self._link.publish(self._topology.reports_exchange, "", message, persistent=False)
