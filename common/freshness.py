"""Whether a signed control message is fresh, pure: judged by its sender's own earlier ones, never by two clocks that must agree.

Order and replay protection rest on numbers that only rise; a clock decides no more than whether a message was held back on its
way. A skew limit must not itself be an outage (TRAPS 34), hence:

1. A sender's *offset* is this node's clock less the sender's, over the message that was fastest: skew and the shortest way. It begins
   with what an earlier run found, else at 0 (both clocks right), falls with every faster message, and creeps up by 0.1 %, more
   than two clocks drift apart.
2. A message is stale when it is later than that offset by more than its lifetime and the tolerance. A stale one is refused.
3. Where nothing but stale ones come, for some time and in step with this node's clock, the sender's clock was set back (or is behind
   from the start): they are the offset from then on. Somebody who holds every message back for a constant time looks the same; both
   are told by the skew.
4. When this node's own clock is set, which shows against the monotonic one, all offsets move with it.
5. What is told of a clock rests on the fastest of the last few messages, and allows for what a busy queue may keep them: their
   lifetime, after which the broker drops heartbeats.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from common.errors import MessageRefused

_AGREE_MS = 5_000.0  # below this two clocks agree: nothing is told
_RECENT = 10
_CREEP = 0.001
_RUN = 4  # so many stale messages in step ...
_RUN_MS = 2000.0  # ... over so long a time are the sender's clock
_OWN_JUMP_MS = 1000.0


class Issued(Protocol):
    """What is looked at of a message's header (common.wire.Header)."""

    @property
    def sender(self) -> str:
        """Who signed it."""

    @property
    def kind(self) -> str:
        """What it is, for a person."""

    @property
    def issued_ms(self) -> int:
        """When, by its sender's clock."""

    @property
    def expires_ms(self) -> int:
        """Until when it says anything, by its sender's clock; 0: for ever."""


@dataclass
class _Sender:
    offset: float
    at: float
    run: int = 0
    run_offset: float = 0.0
    run_since: float = 0.0
    lifetime_ms: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))


class Freshness:
    """Judges the messages of every sender. One thread uses it. `known`: offsets of an earlier run, in milliseconds."""

    def __init__(
        self,
        tolerance_s: float,
        known: Mapping[str, float] | None = None,
        *,
        clock: Callable[[], float] | None = None,
        monotonic: Callable[[], float] | None = None,
    ) -> None:
        self._tolerance_ms = tolerance_s * 1000
        self._clock = clock or time.time
        self._monotonic = monotonic or time.monotonic
        self._apart_ms = (self._clock() - self._monotonic()) * 1000
        at = self._monotonic() * 1000
        self._senders = {name: _Sender(float(offset), at) for name, offset in (known or {}).items()}

    def judge(self, header: Issued) -> None:
        """Take note of a message that nothing else speaks against; raises MessageRefused (expired) when it is stale."""
        self._follow_own_clock()
        at = self._monotonic() * 1000
        offset = self._clock() * 1000 - header.issued_ms
        sender = self._senders.setdefault(header.sender, _Sender(0.0, at))
        base = sender.offset + _CREEP * (at - sender.at)
        sender.lifetime_ms = max(0, header.expires_ms - header.issued_ms)
        stale = header.expires_ms and offset - base > sender.lifetime_ms + self._tolerance_ms
        if stale and not self._in_step(sender, offset, at):
            raise MessageRefused(
                "expired",
                f"a {header.kind} message of {header.sender!r} that is {(offset - base) / 1000:.0f} s late; if more follow, check the "
                "clocks of both nodes",
            )
        if stale:
            base, sender.run = sender.run_offset, 0
            sender.recent.clear()
        sender.offset, sender.at = min(base, offset), at
        sender.recent.append(offset)

    def offset_ms(self, sender: str) -> float:
        """This node's clock less the sender's; 0 where they agree, as far as is known."""
        self._follow_own_clock()
        found = self._senders.get(sender)
        if found is None:
            return 0.0
        offset = min(found.recent) if found.recent else found.offset
        return offset if offset < -_AGREE_MS or offset > _AGREE_MS + found.lifetime_ms else 0.0

    def late_ms(self, sender: str, issued_ms: int) -> float | None:
        """How long ago, now, the sender issued something: by its own clock where the two do not agree. None until it is known
        whether they do, that is before the sender's first fresh message."""
        skew = self.offset_ms(sender)
        found = self._senders.get(sender)
        if found is None or not found.recent:
            return None
        return max(0.0, self._clock() * 1000 - issued_ms - (skew or min(0.0, *found.recent)))

    def _in_step(self, sender: _Sender, offset: float, at: float) -> bool:
        if not sender.run or abs(offset - sender.run_offset) > self._tolerance_ms:
            sender.run, sender.run_offset, sender.run_since = 0, offset, at
        sender.run += 1
        sender.run_offset = min(sender.run_offset, offset)
        return sender.run >= _RUN and at - sender.run_since >= _RUN_MS

    def _follow_own_clock(self) -> None:
        apart_ms = (self._clock() - self._monotonic()) * 1000
        jump, self._apart_ms = apart_ms - self._apart_ms, apart_ms
        if abs(jump) > _OWN_JUMP_MS:
            for sender in self._senders.values():
                sender.offset += jump
                sender.recent = deque((one + jump for one in sender.recent), maxlen=_RECENT)
                sender.run = 0


def sentence(sender: str, offset_ms: float) -> str:
    """For a person."""
    where = "behind" if offset_ms > 0 else "ahead of"
    or_late = ", or its messages arrive that late" if offset_ms > 0 else ""
    return f"the clock of {sender} is {abs(offset_ms) / 1000:.0f} s {where} this node's{or_late}; check the time service of both"
