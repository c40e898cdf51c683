"""Which sessions the primary begins by itself: for nodes that need one, and to look for drift. Pure (DESIGN §8, TRAPS 12).

1. A node that says that it needs a full synchronization gets one of its own; the others are not touched. So does one that was left
   out of the last one, or failed in it, once it is heard again; and one that does not know any more of a session that it had
   (`went_back`): its database is an older copy, and what the session brought is in no log.
2. None at all once a node was heard that has more of the log than the primary: then the primary's database is the older one, and
   only a person can say which of the two is right, by a full synchronization (`outdated`).
3. A node that was never seen to be equal, and that no person has asked to synchronize, gets one that adds rows only
   (Begin.careful).
4. After each that did not help for good there is a pause, twice as long as the one before; from the third on it is an alarm.
5. From time to time all that are heard are verified. Who differs is repaired where the settings say so.
6. So are all where one was not since this service started, where something has put in doubt that one is equal, or the primary's own
   changes were not captured for a while; again after pauses that double (DESIGN: dynamic synchronization at start). Of a node
   that could not apply something it is known that it differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common import sessions
from common.nodestate import State
from common.session import Mode
from common.session_history import drift, failures, last_done, last_missed, last_seen, lately
from common.sessions import Request
from common.settings import SessionSettings


@dataclass(frozen=True)
class Known:
    """What a node last reported, and how long ago."""

    state: State
    sequence: int
    equal_once: bool
    silent_s: float
    proven: bool = True
    quarantined: int = 0
    went_back: bool = False


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
    doubted_ms: int | None = None,
    began_ms: int,
    now_ms: int,
) -> Wanted | None:
    """What to begin now, if anything; `history`: the newest sessions, the newest first; `began_ms`: when this service did;
    `doubted_ms`: since when it may be that this node's own changes have not reached anybody."""
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
    complete = len(settled) == len(known) or now_ms - began_ms > offline_after_s * 1000
    unsure = [
        name
        for name in settled
        if known[name].equal_once
        and not known[name].quarantined
        and not drift(name, history)
        and (not known[name].proven or last_seen(name, history) < max(began_ms, doubted_ms or 0))
    ]
    if settings.verify_at_once and complete and unsure and _paused(history, settings, now_ms):
        return Wanted(Mode.VERIFY, (), sessions.DOUBT)
    return None


def _paused(history: Sequence[Request], settings: SessionSettings, now_ms: int) -> bool:
    last = next((one.ended_ms for one in history if one.cause == sessions.DOUBT and one.ended_ms), None)
    return last is None or now_ms - last > _pause_s(lately(sessions.DOUBT, history, now_ms), settings) * 1000


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
        if one.state is State.NEEDS_FULL_SYNC or one.went_back:
            return sessions.REJOIN
    if settings.repair_drift and drift(name, history):
        return sessions.DRIFT
    return None


def _rested(name: str, history: Sequence[Request], settings: SessionSettings, now_ms: int) -> bool:
    count = failures(name, history, now_ms)
    last = next((one.ended_ms for one in history if one.nodes == (name,) and one.ended_ms), None)
    if not count or last is None:
        return True
    return now_ms - last > _pause_s(count, settings) * 1000


def _pause_s(count: int, settings: SessionSettings) -> float:
    return min(settings.rejoin_longest_pause_s, settings.rejoin_pause_s * 2.0 ** (count - 1))
