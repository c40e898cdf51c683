"""Which sessions the primary begins by itself: for nodes that need one, and to look for drift. Pure (DESIGN §8, TRAPS 12).

1. A node that says that it needs a full synchronization gets one of its own; the others are not touched. So does one that was left
   out of the last one, or failed in it, once it is heard again.
2. None at all once a node was heard that has more of the log than the primary: then the primary's database is the older one, and
   only a person can say which of the two is right, by a full synchronization (`outdated`).
3. A node that was never seen to be equal, and that no person has asked to synchronize, gets one that adds rows only
   (Begin.careful).
4. After each that did not help for good there is a pause, twice as long as the one before; from the third on it is an alarm.
5. From time to time all that are heard are verified. Who differs is repaired where the settings say so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common import sessions
from common.nodestate import State
from common.session import Mode
from common.session_history import drift, failures, last_done, last_missed
from common.sessions import Request
from common.settings import SessionSettings


@dataclass(frozen=True)
class Known:
    """What a node last reported, and how long ago."""

    state: State
    sequence: int
    equal_once: bool
    silent_s: float
    reason: str | None = None


@dataclass(frozen=True)
class Wanted:
    """A session to begin."""

    mode: Mode
    nodes: tuple[str, ...]
    cause: str


def wanted(
    known: Mapping[str, Known],
    history: Sequence[Request],
    *,
    head: int,
    offline_after_s: float,
    settings: SessionSettings,
    outdated: bool,
    began_ms: int,
    now_ms: int,
) -> Wanted | None:
    """What to begin now, if anything; `history`: the newest sessions, the newest first; `began_ms`: when this service did."""
    heard = {name: one for name, one in known.items() if one.silent_s <= offline_after_s}
    if outdated:
        return None
    for name, one in sorted(heard.items()):
        cause = _cause(name, one, history, head, settings)
        if cause is not None and _rested(name, history, settings, now_ms):
            return Wanted(Mode.SYNC, (name,), cause)
    looked = next((one.requested_ms for one in history if one.mode is not Mode.REHEARSE and one.nodes is None), began_ms)
    settled = [name for name, one in heard.items() if one.state in (State.IN_SYNC, State.CATCHING_UP)]
    if settled and now_ms - looked > settings.verify_every_s * 1000:
        return Wanted(Mode.VERIFY, (), sessions.CLOCK)
    return None


def ahead(known: Mapping[str, Known], history: Sequence[Request], *, head: int, now_ms: int) -> list[str]:
    """Nodes that have more of the log than the primary. What one said before it was made equal, or meanwhile, does not count."""
    return sorted(
        name
        for name, one in known.items()
        if one.sequence > head
        and one.state not in (State.PAUSED, State.SYNCHRONIZING)
        and now_ms - one.silent_s * 1000 > (last_done(name, history) or 0)
    )


def _cause(name: str, one: Known, history: Sequence[Request], head: int, settings: SessionSettings) -> str | None:
    if one.state in (State.PAUSED, State.SYNCHRONIZING) or one.sequence > head:
        return None
    if settings.rejoin:
        missed = last_missed(name, history)
        if missed is not None:
            return sessions.FIRST if missed.cause == sessions.FIRST else sessions.REJOIN
        if not one.equal_once:
            return sessions.FIRST
        if one.state is State.NEEDS_FULL_SYNC:
            return sessions.REJOIN
    if settings.repair_drift and drift(name, history):
        return sessions.DRIFT
    return None


def _rested(name: str, history: Sequence[Request], settings: SessionSettings, now_ms: int) -> bool:
    count = failures(name, history, now_ms)
    last = next((one.ended_ms for one in history if one.nodes == (name,) and one.ended_ms), None)
    if not count or last is None:
        return True
    pause_s = min(settings.rejoin_longest_pause_s, settings.rejoin_pause_s * 2.0 ** (count - 1))
    return now_ms - last > pause_s * 1000
