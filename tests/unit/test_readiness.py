"""When a node's TM server may start (DOMAIN §2), and what else has to be done."""

from dataclasses import replace

import pytest

from common.changes import Position
from common.nodestate import NodeState, Role, State
from common.readiness import Facts, obstacle
from common.settings import ReadinessSettings

NODE = NodeState(
    "st2", "mft", Role.SECONDARY, "st1", Position(1, 5), 0, (1, 5), State.CATCHING_UP, None, 3.0, 1, 1, 200, 1,
    proven_ms=100, equal_once=True, started_ms=150,
)  # fmt: skip
FACTS = Facts(NODE, running=True, state=State.IN_SYNC, reason=None, behind=0, quarantined=0)
DEFAULT, STRICT = ReadinessSettings(), ReadinessSettings(strict=True)


def test_yes() -> None:
    assert obstacle(FACTS, DEFAULT) is None
    assert obstacle(FACTS, STRICT) is None
    assert obstacle(replace(FACTS, state=State.CATCHING_UP, behind=5), DEFAULT) is None
    assert obstacle(replace(FACTS, node=replace(NODE, role=Role.PRIMARY, proven_ms=None)), DEFAULT) is None


@pytest.mark.parametrize(
    ("facts", "settings", "told"),
    [
        (replace(FACTS, running=False), DEFAULT, "stsync run"),
        (replace(FACTS, state=State.NEEDS_FULL_SYNC, reason="why"), DEFAULT, "why; run `stsync sync`"),
        (replace(FACTS, state=State.PAUSED, reason="why"), DEFAULT, "paused: why"),
        (replace(FACTS, state=State.CATCHING_UP, reason="why"), DEFAULT, "not in sync: why"),
        (replace(FACTS, quarantined=2), DEFAULT, "stsync quarantine list"),
        (replace(FACTS, node=replace(NODE, proven_ms=None)), DEFAULT, "stsync sync"),
        (replace(FACTS, node=replace(NODE, last_full_sync_ms=149)), STRICT, "readiness.strict"),
        (replace(FACTS, node=replace(NODE, last_full_sync_ms=None)), STRICT, "readiness.strict"),
        (replace(FACTS, behind=101), DEFAULT, "101 batches behind"),
        (replace(FACTS, behind=1, node=replace(NODE, lag_ms=11_000.0)), DEFAULT, "1 batch"),
    ],
)
def test_no_and_why(facts: Facts, settings: ReadinessSettings, told: str) -> None:
    assert told in (obstacle(facts, settings) or "")
