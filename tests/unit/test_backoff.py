"""Waiting before the next try: never less than half, never more than the bound (TRAPS 25)."""

from hypothesis import given
from hypothesis import strategies as st

from common.backoff import delay_s


@given(
    attempt=st.integers(0, 10_000),
    chance=st.floats(0, 1, exclude_max=True),
    minimum_s=st.floats(0.001, 10),
    factor=st.floats(1, 1000),
)
def test_every_wait_is_within_its_bounds(attempt: int, chance: float, minimum_s: float, factor: float) -> None:
    maximum_s = minimum_s * factor
    wait_s = delay_s(attempt, minimum_s=minimum_s, maximum_s=maximum_s, random=lambda: chance)
    assert minimum_s / 2 <= wait_s <= maximum_s


def test_waits_double_up_to_the_maximum() -> None:
    waits = [delay_s(n, minimum_s=0.2, maximum_s=10, random=lambda: 0.0) for n in range(8)]
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]


def test_chance_takes_up_to_half_so_that_nodes_do_not_come_back_in_step() -> None:
    assert delay_s(0, minimum_s=1, maximum_s=10, random=lambda: 0.5) == 0.75
