"""What is remembered of a sender's numbers is bounded, in whatever order they come (TRAPS 34)."""

from common.numbers import Numbers

LATE = 10_000


def test_late_numbers_leave_few_gaps() -> None:
    """Each cuts a gap in two; a sender's message costs the same after any number of them."""
    numbers = Numbers(1)
    numbers.take(10**6)
    for number in range(3, 3 + 2 * LATE, 2):
        if not numbers.judge(number, "a report of 'st2'"):
            numbers.take(number)
    assert 1 <= len(numbers._missing) <= 100
    assert numbers.highest == 10**6
