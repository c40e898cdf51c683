"""A message held back on its way is stale; a clock that is wrong, or is set, is not (TRAPS 34)."""

from dataclasses import dataclass, field

import pytest

from common.errors import MessageRefused
from common.freshness import Freshness

START = 1_800_000_000.0
LIFETIME_S, TOLERANCE_S = 10.0, 300.0


@dataclass(frozen=True)
class Beat:
    issued_ms: int
    sender: str = "st1"
    kind: str = "heartbeat"

    @property
    def expires_ms(self) -> int:
        return self.issued_ms + int(LIFETIME_S * 1000)


@dataclass
class World:
    """Time as it passes, what this node's clock makes of it, and what the sender's does."""

    true_s: float = START
    own_wrong_s: float = 0.0
    senders_wrong_s: float = 0.0
    refused: list[str] = field(default_factory=list)
    known: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.freshness = self.started()

    def started(self) -> Freshness:
        return Freshness(
            TOLERANCE_S,
            self.known,
            clock=lambda: self.true_s + self.own_wrong_s,
            monotonic=lambda: self.true_s - START + 77,
        )

    def beat(self) -> Beat:
        return Beat(int((self.true_s + self.senders_wrong_s) * 1000))

    def fresh(self, beat: Beat) -> bool:
        try:
            self.freshness.judge(beat)
        except MessageRefused as exc:
            self.refused.append(f"{exc.kind}: {exc}")
            return False
        return True

    def live(self, beats: int, every_s: float = 1.0) -> list[bool]:
        """So many heartbeats, each heard when it is sent."""
        found = []
        for _ in range(beats):
            self.true_s += every_s
            found.append(self.fresh(self.beat()))
        return found

    @property
    def skew_s(self) -> float:
        return round(self.freshness.offset_ms("st1") / 1000, 1)


def test_what_comes_late_within_the_tolerance_is_fresh() -> None:
    world = World()
    held = world.beat()
    world.true_s += LIFETIME_S + TOLERANCE_S - 1
    assert world.fresh(held)


@pytest.mark.parametrize("heard_before", [0, 5])
def test_a_message_held_back_is_refused(heard_before: int) -> None:
    world = World()
    world.live(heard_before)
    held = world.beat()
    world.true_s += LIFETIME_S + TOLERANCE_S + 1
    assert not world.fresh(held)
    assert world.refused[0].startswith("expired: ")
    assert "clocks" in world.refused[0]
    assert world.live(3) == [True] * 3
    assert world.skew_s == 0


@pytest.mark.parametrize("off_s", [-86_400.0, -600.0, -20.0, 20.0, 600.0, 86_400.0])
@pytest.mark.parametrize("whose", ["own_wrong_s", "senders_wrong_s"])
def test_a_wrong_clock_is_known_after_some_messages_and_refuses_none_then(whose: str, off_s: float) -> None:
    world = World()
    setattr(world, whose, off_s)
    world.live(5)
    assert len(world.refused) <= 4
    assert world.live(50) == [True] * 50
    assert world.skew_s == (off_s if whose == "own_wrong_s" else -off_s)
    assert world.freshness.late_ms("st1", world.beat().issued_ms - 30) == pytest.approx(30, abs=60)


@pytest.mark.parametrize("jump_s", [-86_400.0, -600.0, 600.0, 86_400.0])
@pytest.mark.parametrize("whose", ["own_wrong_s", "senders_wrong_s"])
def test_a_clock_that_is_set_stops_nothing(whose: str, jump_s: float) -> None:
    world = World()
    world.live(10)
    setattr(world, whose, jump_s)
    world.live(5)
    assert len(world.refused) <= 4
    assert world.live(20) == [True] * 20
    assert world.skew_s == (jump_s if whose == "own_wrong_s" else -jump_s)
    setattr(world, whose, 0.0)
    world.live(5)
    assert world.live(20) == [True] * 20
    assert world.skew_s == 0


def test_a_message_held_back_is_refused_whatever_the_skew() -> None:
    """Also where this node's clock says that it is not late at all."""
    world = World(senders_wrong_s=86_400.0)
    world.live(10)
    held = world.beat()
    world.true_s += LIFETIME_S + TOLERANCE_S + 1
    assert world.live(1) == [True]
    assert not world.fresh(held)


def test_one_message_of_the_future_does_not_make_the_others_stale_for_ever() -> None:
    world = World()
    world.live(5)
    world.senders_wrong_s = 86_400.0
    assert world.live(1) == [True]
    world.senders_wrong_s = 0.0
    world.live(5)
    assert world.live(20) == [True] * 20


def test_a_burst_of_messages_held_back_is_no_clock() -> None:
    world = World()
    held = []
    for _ in range(100):
        world.true_s += 1
        held.append(world.beat())
    world.true_s += LIFETIME_S + TOLERANCE_S + 100
    assert [world.fresh(one) for one in held] == [False] * 100


def test_clocks_that_drift_apart_slowly_stay_known() -> None:
    """200 parts in a million, for a month."""
    world = World()
    for _ in range(30 * 24):
        world.senders_wrong_s -= 3600 * 200e-6
        world.true_s += 3600
        assert world.fresh(world.beat())
    assert world.skew_s == pytest.approx(30 * 86_400 * 200e-6, abs=10)  # the fastest of the last ten, an hour apart


def test_what_an_earlier_run_found_needs_no_finding() -> None:
    world = World(own_wrong_s=86_400.0, known={"st1": 86_400_000.0})
    assert world.live(5) == [True] * 5
    assert world.skew_s == 86_400
