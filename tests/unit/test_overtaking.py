"""A change that waits is never allowed to bring back what a later one has set (TRAPS 29)."""

from dataclasses import replace

import pytest

from common.changes import Frame, Kind
from common.schema import Column, ListedTable, Table
from consumer.overtaking import Failed, Later, Waiting, joined, keys_in
from consumer.plan import Step
from consumer.spellings import Spellings

COLUMNS = ("id", "a", "b")
TABLE = ListedTable(
    Table("t", tuple(Column(name, "int", False, False) for name in COLUMNS), ("id",), guarded=frozenset("a"))
)
KEY_ONLY = ("id",)


KNOWN = Spellings(lambda _table, keys: list(range(len(keys))))  # no two are of one row
FREE = ListedTable(replace(TABLE.table, columns=tuple(replace(one, equality="folded") for one in TABLE.table.columns)))


def step(kind: str, rows: str, columns: tuple[str, ...] = COLUMNS) -> Step:
    return Step("t", Kind(kind), columns, 1, rows)


def left(waiting: Step, *later: Step, failed: tuple[int, ...] = (), table: ListedTable = TABLE) -> Step | None:
    """`failed`: which of the later ones did not go."""
    seen = Later(folding() if table is FREE else KNOWN)
    seen.spellings.keep(table, sorted(keys_in(waiting, {"t": table})))
    for place, one in enumerate(later):
        went = {0: Failed(1, 1, one, "why", (place,))} if place in failed else {}
        seen.see(Frame(one.table, one.kind, one.columns, 1, one.rows), table, failed=went)
    return seen.left_of(waiting, table)


def folding() -> Spellings:
    """As a database whose collation knows no case."""
    return Spellings(lambda _table, keys: [hash(key.lower()) for key in keys])


def both(waiting: Step, later: Step, *, reason: str = "why") -> Step | None:
    return joined(waiting, "why", later, reason, TABLE)


@pytest.mark.parametrize(
    ("waiting", "later"),
    [
        (step("U", "[1,2,3]"), step("U", "[1,4,5]")),
        (step("I", "[1,2,3]"), step("D", "[1]", KEY_ONLY)),
        (step("D", "[1]", KEY_ONLY), step("I", "[1,4,5]")),
        (step("U", "[1,2,3]"), step("K", "[1,9,4,5]")),
        (step("U", "[9,2,3]"), step("K", "[1,9,4,5]")),
        (step("U", "[1,2,3]"), step("T", "[]")),
        (step("K", "[1,2,3,4]"), step("T", "[]")),
        (step("I", "[1,2]", ("id", "a")), step("U", "[1,7,8]")),
    ],
)
def test_what_a_later_change_settles_is_given_up(waiting: Step, later: Step) -> None:
    assert left(waiting, later) is None


def test_a_key_is_the_same_however_it_is_escaped() -> None:
    assert left(step("U", r'["a\/b",2,3]'), step("K", r'["c","a\/b",4,5]')) is None
    assert left(step("U", '["a/b",2,3]'), step("D", r'["a\u002fb"]', KEY_ONLY)) is None


def test_another_row_settles_nothing() -> None:
    waiting = step("U", "[1,2,3]")
    assert left(waiting, step("U", "[2,4,5]"), step("D", "[3]", KEY_ONLY)) == waiting


def test_what_a_later_change_does_not_set_is_still_due() -> None:
    """A program may write a change of some columns alone (README, outbox)."""
    assert left(step("I", "[1,2,3]"), step("U", "[1,8]", ("id", "b"))) == step("I", "[1,2]", ("id", "a"))


def test_a_later_change_of_some_columns_that_failed_too_settles_nothing() -> None:
    """Both wait: the older one makes the row that the newer needs."""
    waiting = step("I", "[1,2,3]")
    assert left(waiting, step("U", "[1,8]", ("id", "b")), failed=(0,)) == waiting


def test_two_changes_of_a_row_wait_as_one_where_the_first_is_no_step_of_an_exchange() -> None:
    """TRAPS 27: `a` is unique: who leaves it alone frees nothing for anybody."""
    waiting = step("I", "[1,2,3]")
    assert both(waiting, step("U", "[1,2,9]")) == step("I", "[1,2,9]"), "in the place, and as what, the first was"
    assert both(waiting, step("U", "[1,4,3]")) is None
    assert both(waiting, step("U", "[1,2,9]"), reason="another") is None, "the first may go before the second"
    assert both(waiting, step("U", "[1,2]", ("id", "a"))) is None, "it makes the row"
    assert both(step("U", "[1,3]", ("id", "b")), step("U", "[1,2,9]")) is None, "the second sets what the first leaves alone"
    second = step("U", "[1,2,9]")
    assert both(step("U", "[1,2]", ("id", "a")), second) is None, (
        "the second alone may need a column more, for the same reason"
    )
    assert both(waiting, step("D", "[1]", KEY_ONLY)) is None
    assert both(step("D", "[1]", KEY_ONLY), waiting) is None
    assert both(waiting, replace(step("U", "[1,2,9]"), unchecked=True)) is None
    assert both(step("K", "[9,1,2,3]"), step("U", "[1,2,9]")) is None


def test_a_key_update_that_failed_too_settles_nothing() -> None:
    """TRAPS 27: it may itself wait for the row whose older change it would settle."""
    for waiting in (step("U", "[1,2,3]"), step("U", "[9,2,3]"), step("K", "[1,2,3,4]"), step("D", "[9]", KEY_ONLY)):
        assert left(waiting, step("K", "[1,9,4,5]"), failed=(0,)) == waiting


def test_a_change_that_went_settles_though_a_newer_one_of_its_row_failed() -> None:
    """TRAPS 29: what the row has by now is not to be taken back."""
    assert left(step("I", "[1,2,3]"), step("U", "[1,4,5]"), step("U", "[1,6,7]"), failed=(1,)) is None


def test_within_a_unit_one_that_is_no_step_waits_with_the_next_one() -> None:
    many = Waiting({"t": TABLE}, KNOWN)
    for place, rows in enumerate(("[1,2,3]", "[1,2,4]", "[1,2,5]", "[1,6,5]")):
        many.failed(place, step("U", rows), "why")
    assert many.due() == [(0, step("U", "[1,2,5]")), (3, step("U", "[1,6,5]"))]
    assert many.merged == {0: [1, 2]}


def test_within_a_unit_a_truncation_that_fails_empties_the_table_too() -> None:
    many = Waiting({"t": TABLE}, KNOWN)
    many.failed(0, step("U", "[1,2,3]"), "why")
    many.failed(1, step("T", "[]"), "why")
    many.failed(2, step("U", "[1,2,4]"), "why")
    assert sorted(many.steps) == [1, 2]
    assert many.merged == {1: [0]}


def test_a_key_update_keeps_the_half_that_is_due() -> None:
    waiting = step("K", "[1,2,3,4]")
    assert left(waiting, step("U", "[2,8,9]")) == step("D", "[1]", KEY_ONLY)
    assert left(waiting, step("I", "[1,8,9]")) == step("U", "[2,3,4]")
    assert left(waiting, step("I", "[1,8,9]"), step("D", "[2]", KEY_ONLY)) is None


def waiting(*steps: tuple[int, Step]) -> Waiting:
    made = Waiting({"t": TABLE}, KNOWN)
    for place, one in steps:
        made.add(place, one, "why")
    return made


def test_within_a_unit_only_earlier_changes_are_settled() -> None:
    many = waiting((1, step("U", "[1,2,3]")), (5, step("U", "[1,6,7]")))
    many.done(3, step("U", "[1,4,5]"))
    assert many.due() == [(5, step("U", "[1,6,7]"))]


def test_within_a_unit_a_key_update_that_went_settles_both_rows() -> None:
    many = waiting((1, step("U", "[1,2,3]")), (2, step("D", "[9]", KEY_ONLY)), (3, step("U", "[4,2,3]")))
    many.done(4, step("K", "[1,9,5,6]"))
    assert many.due() == [(3, step("U", "[4,2,3]"))]


def test_within_a_unit_a_truncation_empties_the_table() -> None:
    many = waiting((1, step("U", "[1,2,3]")), (2, step("K", "[4,5,2,3]")))
    many.done(3, step("T", "[]"))
    assert many.due() == []


def test_a_truncation_is_not_tried_again_over_rows_that_came_after_it() -> None:
    many = waiting((1, step("T", "[]")))
    assert many.due() == [(1, step("T", "[]"))]
    many.done(2, step("I", "[1,2,3]"))
    assert many.due() == []
    assert list(many.steps) == [1]


def test_a_key_update_keeps_what_a_later_change_of_some_columns_did_not_set() -> None:
    """The row that has its new key already takes the rest only once the old one is out of the way."""
    some = step("U", "[2,8]", ("id", "b"))
    assert left(step("K", "[1,2,3,4]"), some) == step("K", "[1,2,3]", ("id", "a"))
    assert left(step("K", "[1,2,3,4]"), some, step("I", "[1,5,6]")) == step("U", "[2,3]", ("id", "a"))
    assert left(step("K", "[1,2,3,4]"), step("U", "[2,7,8]")) == step("D", "[1]", KEY_ONLY)


def test_a_row_that_cannot_be_read_is_settled_by_nothing() -> None:
    for rows in ('["A"]', '"A"', '[["A"],"B",3,4]'):
        waiting = step("K", rows)
        assert left(waiting, step("I", '["A",8,9]'), step("U", '["B",8,9]')) == waiting


def test_a_change_of_a_table_with_another_key_settles_nothing() -> None:
    waiting = step("U", "[1,2,3]")
    assert left(waiting, step("U", "[1,4]", ("a", "b"))) == waiting


@pytest.mark.parametrize(
    ("waiting", "later", "rest"),
    [
        # a key that another row has by now, in another spelling
        (step("K", '["A","B",3,4]'), (step("I", '["a",8,9]'),), step("U", '["B",3,4]')),
        (step("D", '["A"]', KEY_ONLY), (step("I", '["a",8,9]'),), None),
        (step("K", '["A","B",3,4]'), (step("D", '["b"]', KEY_ONLY),), step("D", '["A"]', KEY_ONLY)),
        # a key that is only spelled otherwise is due, whatever else was set; not once it was spelled anew, or the row is gone
        (step("K", '["A","a",3,4]'), (step("U", '["a",8,9]'),), step("K", '["A","a"]', KEY_ONLY)),
        (step("K", '["A","a",3,4]'), (step("U", '["a",8]', ("id", "a")),), step("K", '["A","a",4]', ("id", "b"))),
        (step("K", '["A","a",3,4]'), (step("K", '["a","A",8]', ("id", "a")),), step("U", '["a",4]', ("id", "b"))),
        (step("K", '["A","a",3,4]'), (step("K", '["a","A",8,9]'),), None),
        (step("K", '["A","a",3,4]'), (step("D", '["A"]', KEY_ONLY), step("I", '["a",8,9]')), None),
        (step("I", '["A",3,4]'), (step("K", '["A","a",8]', ("id", "a")),), step("U", '["A",4]', ("id", "b"))),
        (step("U", '["A",3,4]'), (step("K", '["a","A",8,9]'),), None),
        (step("U", '["A",3,4]'), (step("U", '["B",8,9]'),), step("U", '["A",3,4]')),
    ],
)
def test_a_row_is_known_by_any_spelling_of_its_key(waiting: Step, later: tuple[Step, ...], rest: Step | None) -> None:
    """TRAPS 29, 30."""
    assert left(waiting, *later, table=FREE) == rest
    many = Waiting({"t": FREE}, folding())
    many.add(0, waiting, "why")
    for place, one in enumerate(later, 1):
        many.done(place, one)
    found = [one for one, _ in many.steps.values()]
    assert found == ([] if rest is None else [rest])
