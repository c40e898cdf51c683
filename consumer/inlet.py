"""What the primary says in a session, in order and each once, whatever the broker made of it. Pure (common.session)."""

from dataclasses import dataclass, field
from typing import Final

from common.session import Said

_HELD: Final = 64


@dataclass
class Inlet:
    """`received`: up to which number everything came. What comes too early is held, a little of it; what is missing is asked for."""

    received: int = 0
    announced: int = 0
    _held: dict[int, Said] = field(default_factory=dict)

    def take(self, number: int, said: Said) -> list[tuple[int, Said]]:
        """What follows now, with this message, each with its number; nothing where it came before, or something before it did not."""
        self.announced = max(self.announced, number)
        if number == self.received + 1 or (number > self.received and len(self._held) < _HELD):
            self._held[number] = said
        found = []
        while (one := self._held.pop(self.received + 1, None)) is not None:
            self.received += 1
            found.append((self.received, one))
        return found

    def announce(self, sent: int) -> None:
        """The primary has sent up to this number."""
        self.announced = max(self.announced, sent)

    @property
    def missing(self) -> int | None:
        """The first number that did not come, where later ones are known of."""
        return self.received + 1 if self.announced > self.received else None
