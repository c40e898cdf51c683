"""The pause between drains: the shortest for what comes one by one, longer under a flood, never above its bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from publisher.cadence import Cadence


@pytest.mark.parametrize(
    ("changes", "elapsed_s", "pause_ms"),
    [
        pytest.param(1, 3600, 5, id="after idleness"),
        pytest.param(500, 3600, 5, id="a burst after idleness"),
        pytest.param(1, 0.010, 5, id="a hundred a second"),
        pytest.param(1, 0.005, 5, id="two hundred a second"),
        pytest.param(5, 0.010, 12.5, id="five hundred a second"),
        pytest.param(20, 0.010, 40, id="two thousand a second"),
        pytest.param(100_000, 0.0, 40, id="everything at once"),
    ],
)
def test_many_changes_share_a_drain(changes: int, elapsed_s: float, pause_ms: float) -> None:
    assert Cadence(5, 40).pause_s(changes, elapsed_s) * 1000 == pytest.approx(pause_ms)


@given(st.floats(0, 100), st.floats(0, 100), st.integers(0, 10**9), st.floats(0, 10**6))
def test_the_pause_stays_within_its_bounds(shortest: float, longest: float, changes: int, elapsed_s: float) -> None:
    pause_ms = Cadence(shortest, longest).pause_s(changes, elapsed_s) * 1000
    assert shortest - 1e-9 <= pause_ms <= max(shortest, longest) + 1e-9


@given(st.integers(50, 5000))
def test_a_steady_stream_comes_to_rest_at_one_pause(per_second: int) -> None:
    """The changes that come during a pause lead to the same pause again: it neither swings nor grows without end."""
    cadence, pause_s = Cadence(5, 40), 0.005
    for _ in range(100):
        pause_s = cadence.pause_s(round(per_second * pause_s), pause_s)
    assert pause_s * 1000 == pytest.approx(min(max(25 * per_second / 1000, 5), 40), rel=0.35)
