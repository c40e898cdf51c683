"""Confirms in any order are reported in the order of publishing (TRAPS 22)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.window import ConfirmWindow


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.permutations(range(1, n + 1)), st.booleans())))
def test_whatever_the_order_of_confirms_all_tokens_come_once_and_in_order(
    case: tuple[list[int], bool],
) -> None:
    numbers, multiple = case
    window = ConfirmWindow()
    assert [window.sent(one, now=0.0) for one in sorted(numbers)] == sorted(numbers)
    released: list[object | None] = []
    confirmed: set[int] = set()
    for number in numbers:
        released += window.confirm(number, multiple=multiple)
        confirmed |= set(range(1, number + 1)) if multiple else {number}
        first_missing = min(set(numbers) - confirmed, default=len(numbers) + 1)
        assert released == list(range(1, first_missing))
    assert released == sorted(numbers)
    assert len(window) == 0


def test_a_token_waits_for_those_before_it() -> None:
    window = ConfirmWindow()
    for token in "abc":
        window.sent(token, now=0.0)
    assert window.confirm(2, multiple=False) == []
    assert window.confirm(1, multiple=False) == ["a", "b"]
    assert window.confirm(3, multiple=True) == ["c"]


def test_a_repeated_confirm_changes_nothing() -> None:
    window = ConfirmWindow()
    window.sent("a", now=0.0)
    assert window.confirm(1, multiple=True) == ["a"]
    assert window.confirm(1, multiple=True) == []


def test_a_confirm_of_what_was_never_published_is_an_error() -> None:
    with pytest.raises(ValueError, match="never published"):
        ConfirmWindow().confirm(1, multiple=False)


def test_the_age_is_that_of_the_oldest_unconfirmed_message() -> None:
    window = ConfirmWindow()
    assert window.oldest_age_s(now=9.0) == 0.0
    window.sent("a", now=1.0)
    window.sent("b", now=5.0)
    assert window.oldest_age_s(now=9.0) == 8.0
    window.confirm(1, multiple=False)
    assert window.oldest_age_s(now=9.0) == 4.0
