"""What a secondary says of itself: its state from what it knows, pure, so that `status` and reports never disagree."""

from dataclasses import dataclass

from common.changes import Position
from common.errors import MessageRefused
from common.nodestate import State, at_rest, behind_by
from common.session import Phase

_HINDERS = frozenset({"signature", "certificate", "seal", "version", "malformed", "size", "epoch"})  # no time mends these


@dataclass(frozen=True)
class Standing:
    """A secondary at one moment. `heard_s` is how long ago the primary was heard last; None: not since the start.
    `unanswered_s` is for how long catch-up requests have brought nothing; None: nothing is asked for. `trouble` is what keeps it from
    applying anything now. `session`: how far a full synchronization is that has paused the log here. `proven`: it was seen to be equal
    to the primary, and the log has led on from there; `equal_once`: it was at any time; `doubt`: why it
    has to be compared anew; `installed_session`: the last full synchronization that it
    installed."""

    position: Position
    head: tuple[int, int]
    quarantined: int
    refused: tuple[tuple[str, int], ...]
    lag_ms: float | None
    last_full_sync_ms: int | None
    heard_s: float | None
    needs_full_sync: str | None = None
    stuck: str | None = None
    unanswered_s: float | None = None
    trouble: str | None = None
    session: Phase | None = None
    proven: bool = False
    equal_once: bool = False
    doubt: str | None = None
    installed_session: int = 0

    @property
    def behind(self) -> int:
        """How many batches the primary has that this node has not."""
        return max(0, self.head[1] - self.position.sequence)


def describe(standing: Standing, offline_after_s: float) -> tuple[State, str | None]:
    """The state and a sentence for a person (None when there is nothing to say)."""
    if standing.session is not None:
        state = State.PAUSED if standing.session is Phase.PAUSING else State.SYNCHRONIZING
        return state, f"a full synchronization is under way: {standing.session}"
    if standing.needs_full_sync:
        return State.NEEDS_FULL_SYNC, standing.needs_full_sync
    if standing.stuck:
        return State.REFUSED, standing.stuck
    if standing.trouble:
        return State.CATCHING_UP, standing.trouble
    if standing.heard_s is None or standing.heard_s > offline_after_s:
        since = "since this service started" if standing.heard_s is None else f"for {standing.heard_s:.0f} s"
        return State.CATCHING_UP, f"nothing was heard from the primary {since}"
    if standing.behind:
        return State.CATCHING_UP, behind_by(standing.behind)
    return State.IN_SYNC, at_rest(standing.quarantined, standing.doubt)


def hindered(exc: MessageRefused, needed: int, head: int, *, silent: bool) -> str | None:
    """What is told where a refused message may be why this node does not go on; None where it does (TRAPS 29).

    `needed` is the next sequence, `head` the primary's last as far as is known, `silent` whether the primary is not heard. Whose
    message it was is not known: its signature may be what is wrong.
    """
    if exc.kind not in _HINDERS or not (silent or head >= needed):
        return None
    remedy = {"certificate": "; see trust.authorities here and trust.certificate there"}.get(exc.kind, "")
    if head < needed:
        return f"the primary is not heard, and what arrives is refused: {exc}{remedy}"
    remedy = (
        remedy or "; see whether stsync_journal on the primary is damaged, or whether it has another version or cluster key"
    )
    return f"sequence {needed} is needed and asked for again and again, but what arrives is refused: {exc}{remedy}"
