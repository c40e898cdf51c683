"""Composition: rows too long for one frame are cut between rows, never inside one (TRAPS 17)."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from common.changes import SEPARATOR
from publisher.composer import portions

ROWS = st.lists(st.text(st.characters(exclude_characters="\n")).map(lambda text: f"[{text}]"), min_size=1, max_size=30)


@given(ROWS, st.integers(1, 60))
def test_portions_hold_all_rows_in_order_and_are_no_longer_than_asked(rows: list[str], size: int) -> None:
    found = list(portions(SEPARATOR.join(rows), size))
    assert [row for _, text in found for row in text.split(SEPARATOR)] == rows
    assert [count for count, _ in found] == [len(text.split(SEPARATOR)) for _, text in found]
    assert all(len(text) <= size or count == 1 for count, text in found)


@given(ROWS, st.integers(1, 60))
def test_portions_are_as_long_as_they_may_be(rows: list[str], size: int) -> None:
    texts = [text for _, text in portions(SEPARATOR.join(rows), size)]
    for text, following in pairwise(texts):
        assert len(text) + len(SEPARATOR) + len(following.split(SEPARATOR)[0]) > size
