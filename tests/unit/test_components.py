"""Tables in the order in which rows can be put, and those together that refer to each other (TRAPS 28)."""

from hypothesis import given
from hypothesis import strategies as st

from common.schema import Column, ListedTable, Table, components

NAMES = "abcdefg"


def listed(parents: dict[str, set[str]]) -> list[ListedTable]:
    column = (Column("id", "bigint"),)
    return [ListedTable(Table(name, column, ("id",), frozenset(above))) for name, above in parents.items()]


def test_circles_stand_together_between_what_they_refer_to_and_what_refers_to_them() -> None:
    tables = listed({"z": set(), "hen": {"egg", "z"}, "egg": {"hen"}, "a": {"egg", "a"}, "alone": {"elsewhere"}})
    assert components(tables) == [["alone"], ["z"], ["egg", "hen"], ["a"]]


@given(st.dictionaries(st.sampled_from(NAMES), st.sets(st.sampled_from(NAMES))))
def test_no_table_stands_before_one_that_it_refers_to(parents: dict[str, set[str]]) -> None:
    groups = components(listed(parents))
    place = {name: number for number, group in enumerate(groups) for name in group}
    assert sorted(place) == sorted(parents)
    assert sum(map(len, groups)) == len(parents)
    assert all(place[above] <= place[name] for name, some in parents.items() for above in some if above in place)
