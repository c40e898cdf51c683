"""What a secondary says of itself: its state from what it knows, pure, so that `status` and reports never disagree."""

from dataclasses import dataclass

from common.changes import Position
from common.nodestate import State, behind_by, could_not_be_applied


@dataclass(frozen=True)
class Standing:
    """A secondary at one moment. `heard_s` is how long ago the primary was heard last; None: not since the start.
    `unanswered_s` is for how long catch-up requests have brought nothing; None: nothing is asked for."""

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

    @property
    def behind(self) -> int:
        """How many batches the primary has that this node has not."""
        return max(0, self.head[1] - self.position.sequence)


def describe(standing: Standing, offline_after_s: float) -> tuple[State, str | None]:
    """The state and a sentence for a person (None when there is nothing to say)."""
    if standing.needs_full_sync:
        return State.NEEDS_FULL_SYNC, standing.needs_full_sync
    if standing.stuck:
        return State.REFUSED, standing.stuck
    if standing.heard_s is None:
        return State.CATCHING_UP, "nothing was heard from the primary since this service started"
    if standing.heard_s > offline_after_s:
        return State.CATCHING_UP, f"nothing was heard from the primary for {standing.heard_s:.0f} s"
    if standing.behind:
        return State.CATCHING_UP, behind_by(standing.behind)
    if standing.quarantined:
        return State.IN_SYNC, could_not_be_applied(standing.quarantined)
    return State.IN_SYNC, None
