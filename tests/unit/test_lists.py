"""`sync_tables.conf`: what it means, and that every mistake is told with file and line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Misconfigured
from common.lists import TableRule, parse_tables, read_tables, resolve
from common.schema import Column, Table


def table(name: str, *, key: tuple[str, ...] = ("id",), parents: frozenset[str] = frozenset()) -> Table:
    return Table(name, (Column("id", "int"), Column("name", "text"), Column("lastLogin", "text")), key, parents)


TABLES = {name: table(name) for name in ("Account", "LoginPolicy", "LoginPolicyRule")}


def exact(left: str, right: str) -> bool:
    return left == right


def folded(left: str, right: str) -> bool:
    return left.lower() == right.lower()


def test_a_bare_list_of_names_as_today_s_users_have_it_is_valid() -> None:
    text = "\ufeff# tables\r\n\r\nAccount\r\n  LoginPolicy  # the policies\r\n"
    assert [rule.pattern for rule in parse_tables(text, "f")] == ["Account", "LoginPolicy"]


def test_options_are_read() -> None:
    (rule,) = parse_tables("""T where="a = 'x # y' and \\"b\\" = 1" exclude=c,d requires="E, F" # note""", "f")
    assert rule == TableRule("T", 1, """a = 'x # y' and "b" = 1""", ("c", "d"), ("E", "F"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a b", "one table a line"),
        ("a where=", "empty"),
        ('a where="x', "quote"),
        ('where="x"', "begins with a table name"),
        ("a colour=1", "unknown option 'colour'"),
        ("a exclude=x exclude=y", "twice"),
    ],
)
def test_a_mistake_is_told_with_file_and_line(line: str, reason: str) -> None:
    with pytest.raises(Misconfigured, match=reason) as wrong:
        parse_tables(f"ok\n{line}\n", "conf/sync_tables.conf")
    assert str(wrong.value).startswith("conf/sync_tables.conf:2: ")


@given(st.text())
def test_any_text_is_a_list_or_a_clear_error(text: str) -> None:
    told, rules = "f:", []
    try:
        rules = parse_tables(text, "f")
    except Misconfigured as exc:
        told = str(exc)
    assert told.startswith("f:")
    assert all(rule.pattern for rule in rules)


def test_globs_select_and_a_named_table_s_own_line_wins() -> None:
    rules = parse_tables("Login* exclude=lastLogin\nLoginPolicy exclude=name\n", "f")
    listed = resolve(rules, TABLES, exact, "f")
    assert sorted(listed) == ["LoginPolicy", "LoginPolicyRule"]
    assert listed["LoginPolicy"].exclude == {"name"}
    assert listed["LoginPolicyRule"].exclude == {"lastLogin"}


def test_names_are_matched_as_the_database_compares_them() -> None:
    assert list(resolve(parse_tables("ACCOUNT", "f"), TABLES, folded, "f")) == ["Account"]
    with pytest.raises(Misconfigured, match="f:1: table ACCOUNT does not exist"):
        resolve(parse_tables("ACCOUNT", "f"), TABLES, exact, "f")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Nope", "does not exist"),
        ("Account exclude=nope", "no column nope"),
        ("Account exclude=id", "part of the key"),
        ("Account requires=Nope", "required table Nope"),
        ("Account\nAccount", "already in line 1"),
        ("Keyless", "no primary key"),
        ("Key*", "no primary key"),
        ("Strict exclude=must", "NOT NULL and has no default"),
    ],
)
def test_what_cannot_be_synchronized_is_refused_by_name(line: str, reason: str) -> None:
    """TRAPS 4: a table without a primary key is refused, never skipped."""
    strict = Table("Strict", (Column("id", "int"), Column("must", "int", required=True)), ("id",))
    tables = TABLES | {"Keyless": table("Keyless", key=()), "Strict": strict}
    with pytest.raises(Misconfigured, match=reason) as wrong:
        resolve(parse_tables(line, "f"), tables, exact, "f")
    assert str(wrong.value).startswith("f:")


def test_the_synchronized_columns_begin_with_the_key_and_leave_out_excluded_and_generated_ones() -> None:
    columns = (
        Column("x", "int"),
        Column("b", "int"),
        Column("g", "int", generated=True),
        Column("a", "int"),
        Column("y", "int"),
    )
    tables = {"t": Table("t", columns, ("a", "b"))}
    listed = resolve(parse_tables("t exclude=Y", "f"), tables, exact, "f")["t"]
    assert [c.name for c in listed.columns] == ["a", "b", "x"]


def test_an_unreadable_list_is_told(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"sync_tables\.conf: no such file"):
        read_tables(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/sync_tables.conf").write_bytes(b"\xff\xfe")
    with pytest.raises(Misconfigured, match="not UTF-8"):
        read_tables(tmp_path)
