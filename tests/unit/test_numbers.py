"""A message that comes again is an alarm, one that comes late is none (TRAPS 34)."""

import pytest

from common.errors import MessageRefused
from common.numbers import Numbers


def come(numbers: Numbers, *several: int) -> list[bool]:
    found = []
    for number in several:
        found.append(numbers.judge(number, "a report of 'st2'"))
        numbers.take(number)
    return found


@pytest.mark.parametrize("again", [5, 6, 7, 100, 101])
def test_what_came_before_is_refused(again: int) -> None:
    numbers = Numbers()
    assert come(numbers, 5, 6, 7, 100, 101) == [True] * 5
    with pytest.raises(MessageRefused, match="a report of 'st2' that was received before") as caught:
        come(numbers, again)
    assert caught.value.kind == "replayed"


def test_what_was_passed_by_is_late_once() -> None:
    numbers = Numbers(10)
    assert come(numbers, 1000, 1001, 12, 11, 500) == [True, True, False, False, False]
    for again in (11, 12, 500, 1000, 1001):
        with pytest.raises(MessageRefused):
            come(numbers, again)
    assert come(numbers, 13, 499, 501, 999, 1002) == [False, False, False, False, True]
    assert numbers.highest == 1002


def test_what_an_earlier_process_took_is_refused_and_so_is_all_below() -> None:
    numbers = Numbers(10)
    for old in (10, 9, 1):
        with pytest.raises(MessageRefused):
            come(numbers, old)


def test_before_the_first_that_is_known_all_is_old() -> None:
    numbers = Numbers()
    come(numbers, 50)
    with pytest.raises(MessageRefused):
        come(numbers, 49)


def test_what_is_judged_and_not_taken_may_still_come() -> None:
    """It may have been refused for something else."""
    numbers = Numbers(1)
    assert numbers.judge(2, "it")
    assert numbers.judge(2, "it")


def test_gaps_are_bounded() -> None:
    numbers = Numbers(1)
    come(numbers, *range(3, 1003, 2))
    assert come(numbers, 1000) == [False]
    with pytest.raises(MessageRefused):
        come(numbers, 2)
