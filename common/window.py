"""Which messages of a channel are not yet confirmed, and which may be reported as such, in their order."""

from collections import deque
from dataclasses import dataclass


@dataclass
class _Sent:
    token: object | None
    at: float
    confirmed: bool = False


class ConfirmWindow:
    """The unconfirmed messages of one channel in confirm mode.

    The broker may confirm out of order; a token is released only when every message before it has been
    confirmed, so that the last released token is a point to rewind to (TRAPS 22). Not thread-safe: it belongs
    to the I/O thread.
    """

    def __init__(self) -> None:
        self._sent: deque[_Sent] = deque()
        self._first = 1  # the broker's number of the oldest message kept

    def __len__(self) -> int:
        return len(self._sent)

    def sent(self, token: object | None, *, now: float) -> int:
        """Note a message as published; returns the number by which the broker will confirm it."""
        self._sent.append(_Sent(token, now))
        return self._first + len(self._sent) - 1

    def confirm(self, number: int, *, multiple: bool) -> list[object | None]:
        """Note a confirmation (`multiple`: of all up to it); return the tokens it releases, oldest first."""
        index = number - self._first
        if index >= len(self._sent):
            raise ValueError(f"message {number} was confirmed but never published")
        for position in range(index + 1) if multiple else (index,):
            if position >= 0:
                self._sent[position].confirmed = True
        released: list[object | None] = []
        while self._sent and self._sent[0].confirmed:
            released.append(self._sent.popleft().token)
            self._first += 1
        return released

    def oldest_age_s(self, *, now: float) -> float:
        """Seconds since the oldest unconfirmed message was published; 0 if there is none."""
        return now - self._sent[0].at if self._sent else 0.0
