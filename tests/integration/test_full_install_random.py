"""Whatever states two databases are in, an installation makes them equal, and each local row does what it says (TRAPS 27, 32)."""

import random
import sqlite3
from collections import Counter
from contextlib import suppress

import pytest
from sqlalchemy.exc import DBAPIError

from tests.harness import Node
from tests.installing import Pair
from tests.installing_schema import EVERY, local_rows


class Writer:
    """A program that changes a node at random, as far as its constraints let it."""

    def __init__(self, pair: Pair, node: Node, seed: str) -> None:
        self.pair, self.node = pair, node
        self.rng = random.Random(seed)

    def write(self, count: int) -> None:
        for _ in range(count):
            with suppress(DBAPIError):
                self.node.execute(*self.rng.choice((self._parent, self._child, self._self, self._keyed, self._circle))())

    def _parent(self) -> list[str]:
        one, other, word = self.rng.randint(1, 9), self.rng.randint(1, 9), f"c{self.rng.randint(1, 12)}"
        return self.rng.choice((
            [f"INSERT INTO grp VALUES ({one}, '{word}', NULL, '{self.node.name}{one}')"],
            [f"DELETE FROM grp WHERE id = {one}"],
            [f"DELETE FROM {table} = {one}" for table in ("member WHERE grp_id", "strict WHERE grp_id", "grp WHERE id")],
            [f"UPDATE grp SET note = '{word}' WHERE id = {one}"],
            [f"UPDATE grp SET code = '{word}' WHERE id = {one}"],
            self._swap("grp", "code", one, other),
        ))  # fmt: skip

    def _child(self) -> list[str]:
        table = self.rng.choice(("member", "badge", "hint", "strict"))
        column, value = {
            "member": ("grp_id", ""),
            "strict": ("grp_id", ""),
            "badge": ("member_id", "1"),
            "hint": ("code", "c"),
        }[table]
        quote = "'" if value == "c" else ""
        to = f"{quote}{value}{self.rng.randint(0, 9)}{quote}"
        one = self.rng.randint(10, 19)
        return [self.rng.choice((
            f"INSERT INTO {table} (id, {column}) VALUES ({one}, {to})",
            f"DELETE FROM {table} WHERE id = {one}",
            f"UPDATE {table} SET {column} = {to} WHERE id = {one}",
        ))]  # fmt: skip

    def _self(self) -> list[str]:
        table = self.rng.choice(("unit", "tree"))
        one, other = self.rng.randint(1, 9), self.rng.choice(("NULL", *range(1, 10)))
        name = f", 'n{self.rng.randint(1, 12)}'" if table == "unit" else ""
        return self.rng.choice((
            [f"INSERT INTO {table} VALUES ({one}{name}, {other})"],
            [f"DELETE FROM {table} WHERE id = {one}"],
            [f"UPDATE {table} SET above = {other} WHERE id = {one}"],
            self._swap("unit", "name", one, self.rng.randint(1, 9)),
        ))  # fmt: skip

    def _keyed(self) -> list[str]:
        a, b, one = self.rng.choice("abA"), self.rng.randint(1, 3), self.rng.randint(1, 9)
        word = self.rng.choice(("abc", "Abc", "ABC", "def", "Def", "x", "X"))
        return [self.rng.choice((
            f"INSERT INTO pair VALUES ('{a}', {b}, '{word}')",
            f"DELETE FROM pair WHERE a = '{a}' AND b = {b}",
            f"UPDATE pair SET val = '{word}' WHERE a = '{a}' AND b = {b}",
            f"INSERT INTO piece VALUES ({one}, '{a}', {b})",
            f"DELETE FROM piece WHERE id = {one}",
            f"INSERT INTO word VALUES ('{word}', '{a}', NULL)",
            f"DELETE FROM word WHERE name = '{word}'",
            f"UPDATE word SET val = '{a}' WHERE name = '{word}'",
            f"INSERT INTO word_use VALUES ({one}, '{word}')",
            f"DELETE FROM word_use WHERE id = {one}",
        ))]  # fmt: skip

    def _swap(self, table: str, column: str, one: int, other: int) -> list[str]:
        values = dict(self.node.rows(f"SELECT id, {column} FROM {table}"))
        if one not in values or other not in values or one == other:
            return []
        pairs = ((one, "tmp"), (other, values[one]), (one, values[other]))
        return [f"UPDATE {table} SET {column} = '{value}' WHERE id = {key}" for key, value in pairs]

    def _circle(self) -> list[str]:
        one, other = self.rng.randint(1, 6), self.rng.randint(1, 6)
        if self.rng.random() < 0.4:
            with suppress(DBAPIError, sqlite3.Error):
                name = f"h{self.rng.randint(1, 9)}"
                self.pair.blindly(
                    self.node, f"INSERT INTO hen VALUES ({one}, {one}, '{name}')", f"INSERT INTO egg VALUES ({one}, {one})"
                )
            return []
        return self.rng.choice((
            [f"DELETE FROM hen WHERE id = {one}"],
            [f"UPDATE hen SET egg_id = {other} WHERE id = {one}"],
            [f"UPDATE egg SET hen_id = {other} WHERE id = {one}"],
            self._swap("hen", "name", one, other),
        ))  # fmt: skip


def write_locally(node: Node, seed: str) -> None:
    rng = random.Random(seed)
    for place in range(12):
        one = rng.randint(1, 9)
        for statement in (
            f"INSERT INTO member (id, grp_id, mine) VALUES ({70 + place}, {one}, 1)",
            f"INSERT INTO u_cascade VALUES ({place}, {one})",
            f"INSERT INTO u_below VALUES ({place})",
            f"INSERT INTO u_null VALUES ({place}, {one})",
            f"INSERT INTO u_code VALUES ('c{one}')",
        ):
            with suppress(DBAPIError):
                node.execute(statement)


def check_random(pair: Pair, seed: str) -> None:
    pair.on_both(*(f"DELETE FROM {name}" for name in EVERY))
    for node in (pair.primary, pair.secondary):
        Writer(pair, node, seed).write(120)  # the same on both
        Writer(pair, node, f"{seed}{node.name}").write(60)
    write_locally(pair.secondary, seed)
    before = local_rows(pair)
    codes = {code: one for one, code in pair.secondary.rows("SELECT id, code FROM grp")}
    pair.install()
    assert pair.cluster.differences() == []
    stays = dict(pair.primary.rows("SELECT id, code FROM grp"))
    after = local_rows(pair)
    assert after["member WHERE mine = 1"] == [row for row in before["member WHERE mine = 1"] if row[-1] in stays]
    assert after["u_cascade"] == [row for row in before["u_cascade"] if row[1] in stays]
    assert after["u_below"] == [row for row in before["u_below"] if row[0] in {one for one, _ in after["u_cascade"]}]
    assert after["u_null"] == sorted(((one, to if to in stays else None) for one, to in before["u_null"]), key=repr)
    assert set(after["seen"]) >= {row for row in before["seen"] if row[0] in stays}
    known = set(stays.values())
    sure = [code for (code,) in before["u_code"] if code not in known or stays.get(codes[code]) == code]
    expected = Counter(stays[codes[code]] for code in sure if codes[code] in stays)
    found = Counter(code for (code,) in after["u_code"])
    assert expected <= found
    assert found.total() <= expected.total() + len(before["u_code"]) - len(sure)


@pytest.mark.parametrize("seed", range(4))
def test_any_two_states_become_equal(pair: Pair, seed: int) -> None:
    check_random(pair, str(seed))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(6))
def test_any_two_states_become_equal_at_length(pair: Pair, seed: int) -> None:
    for place in range(40):
        check_random(pair, f"{seed}.{place}")
