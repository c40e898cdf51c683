"""The numbers of one sender's messages, pure: one that comes again is told from one that comes late (TRAPS 34).

Numbers only rise. What was given to a connection that is no more may arrive after what the next one brought, for a broker may
take nothing for a while (TRAPS 16): it says nothing any more, and is no attack either.
"""

from typing import Final

from common.errors import MessageRefused

_MOST: Final = (
    100  # gaps that are remembered; each message that is lost, or late, and each new process of a sender leaves one
)


class Numbers:
    """What has come of one sender. `highest`: the last one that an earlier process took, 0 where nothing is known."""

    def __init__(self, highest: int = 0) -> None:
        self.highest = highest
        self._missing: list[tuple[int, int]] = []  # first and last, ascending

    def judge(self, number: int, what: str) -> bool:
        """Whether the message with this number is newer than all before it; else it is late, and to be passed over. Raises
        MessageRefused (replayed) where it came before; `what` says of it what it is, for a person."""
        if number > self.highest or any(first <= number <= last for first, last in self._missing):
            return number > self.highest
        raise MessageRefused("replayed", f"{what} that was received before, or an older one")

    def take(self, number: int) -> None:
        """It came, and nothing else speaks against it."""
        if number > self.highest:
            if self.highest and number > self.highest + 1:
                self._missing = [*self._missing, (self.highest + 1, number - 1)][-_MOST:]
            self.highest = number
            return
        for place, (first, last) in enumerate(self._missing):
            if first <= number <= last:
                halves = (first, number - 1), (number + 1, last)
                self._missing[place : place + 1] = [one for one in halves if one[0] <= one[1]]
                self._missing = self._missing[-_MOST:]
                return
