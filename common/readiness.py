"""Whether this node's transaction manager may start: only where the node is at a verified position (DOMAIN §2). Pure."""

from dataclasses import dataclass

from common.nodestate import NodeState, Role, State, behind_by
from common.settings import ReadinessSettings

_SYNC = "run `stsync sync` on the primary"


@dataclass(frozen=True)
class Facts:
    """What is asked about, of this moment; `state` and `reason` as `status` shows them."""

    node: NodeState
    running: bool
    state: State
    reason: str | None
    behind: int
    quarantined: int


def obstacle(facts: Facts, settings: ReadinessSettings) -> str | None:
    """Why the node is not ready, and what to do about it; None where it is."""
    if not facts.running:
        return "this node's service does not run; start it with `stsync run`"
    if facts.node.role is Role.PRIMARY:
        return None
    return _of_state(facts) or _of_proof(facts.node, settings) or _of_lag(facts, settings)


def _of_state(facts: Facts) -> str | None:
    if facts.state not in (State.IN_SYNC, State.CATCHING_UP):
        told = "`stsync sync`" in (facts.reason or "")
        remedy = f"; {_SYNC}" if facts.state is State.NEEDS_FULL_SYNC and not told else ""
        return f"this node is {facts.state}: {facts.reason}{remedy}"
    if facts.quarantined:
        return f"{facts.quarantined} changes could not be applied here; see `stsync quarantine list`"
    return None


def _of_proof(node: NodeState, settings: ReadinessSettings) -> str | None:
    if node.proven_ms is None:
        since = f": {node.doubt}" if node.doubt else ""
        return f"this node has not been seen to be equal to the primary{since}; {_SYNC}, or `stsync verify`"
    if settings.strict and (node.last_full_sync_ms or 0) < (node.started_ms or 0):
        return f"no full synchronization has been completed since this node's service started (readiness.strict); {_SYNC}"
    return None


def _of_lag(facts: Facts, settings: ReadinessSettings) -> str | None:
    if facts.behind > settings.max_behind or (facts.behind and (facts.node.lag_ms or 0) > settings.max_lag_s * 1000):
        return f"this node is {behind_by(facts.behind)}; it catches up by itself"
    if facts.state is State.CATCHING_UP and not facts.behind:
        return f"this node is not in sync: {facts.reason}"
    return None
