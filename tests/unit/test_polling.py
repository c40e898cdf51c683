"""Polling: quick under load, relaxed when idle, and never most of a core, however long a look takes."""

from dataclasses import dataclass, field

import pytest

from common.dialects import polling
from common.dialects.polling import PollWaker

SHORTEST_S, LONGEST_S = 0.002, 0.2


@dataclass
class Time:
    """A clock that goes on when somebody waits, or looks."""

    now: float = 1000.0
    waited: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now

    def is_set(self) -> bool:
        return False

    def wait(self, timeout: float) -> bool:
        self.waited.append(timeout)
        self.now += timeout
        return False

    def fileno(self) -> int:
        raise NotImplementedError


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    found = Time()
    monkeypatch.setattr(polling, "time", found)
    return found


def waker(time: Time) -> PollWaker:
    return PollWaker(None, lambda: None, time, (SHORTEST_S, LONGEST_S))


def test_looks_come_less_often_the_longer_nothing_comes(time: Time) -> None:
    polls = waker(time)
    for _ in range(300):
        assert polls.wait(1.0)
    assert time.waited[0] == SHORTEST_S
    assert time.waited == sorted(time.waited)
    assert time.waited[-1] == LONGEST_S


def test_after_something_came_it_looks_at_once_and_often(time: Time) -> None:
    polls = waker(time)
    for _ in range(300):
        polls.wait(1.0)
    polls.found(0.0)
    time.waited.clear()
    for _ in range(2):
        polls.wait(1.0)
    assert time.waited == [0.0, SHORTEST_S]


@pytest.mark.parametrize("look_s", [0.004, 0.01, 0.5])
def test_a_long_look_is_followed_by_a_long_rest(time: Time, look_s: float) -> None:
    polls = waker(time)
    polls.wait(1.0)
    for _ in range(20):
        time.now += look_s
        polls.wait(1.0)
    assert all(rest > min(4 * look_s, 0.03) - 1e-9 for rest in time.waited[2:])
    assert max(time.waited) < 0.03 + 1e-9


def test_a_single_long_look_changes_nothing(time: Time) -> None:
    polls = waker(time)
    for number in range(20):
        time.now += 0.1 if number % 2 else 0.0004
        polls.wait(1.0)
    assert max(time.waited) <= LONGEST_S


def test_looks_of_every_day_change_nothing(time: Time) -> None:
    polls = waker(time)
    for _ in range(3):
        time.now += 0.001
        polls.wait(1.0)
    assert max(time.waited) < 1.2 * SHORTEST_S


def test_what_a_find_cost_is_no_reason_to_rest(time: Time) -> None:
    """The drain that found something may have taken seconds; what stands there meanwhile is taken at once."""
    polls = waker(time)
    polls.wait(1.0)
    time.now += 3.0
    polls.found(0.0)
    polls.wait(1.0)
    assert time.waited[-1] == 0.0


def test_looks_that_take_ever_longer_tell_of_somebody_who_writes_and_will_commit(time: Time) -> None:
    """What is not committed yet has to be passed over; a node that was idle until then would notice the commit late."""
    polls = waker(time)
    for _ in range(300):
        polls.wait(1.0)
    time.waited.clear()
    for number in range(60):
        time.now += 0.001 + 0.0002 * number
        polls.wait(1.0)
    assert min(time.waited[:10]) == LONGEST_S
    assert max(time.waited[20:]) < 0.05


def test_looks_that_stay_long_grow_rare_again(time: Time) -> None:
    """Nobody has to write for that: the database may be kept from clearing away."""
    polls = waker(time)
    for _ in range(300):
        time.now += 0.008
        polls.wait(1.0)
    assert time.waited[-1] == LONGEST_S
    assert sum(time.waited[:20]) < 20 * 0.06
