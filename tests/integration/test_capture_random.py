"""SQLite: whatever statements a program makes, with whatever triggers of its own, the secondary ends equal (TRAPS 2, 4, 28)."""

import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness import NO_BROKER, make_cluster
from tests.pipeline import Pipeline

REPLAYING = "CREATE TABLE stsync_replaying (id INTEGER PRIMARY KEY)"  # named by triggers that are made before `install`
MINE = "WHEN NOT EXISTS (SELECT 1 FROM stsync_replaying)"
NUMBERS = (1, 2, 3, 4, 5, 6)
WORDS = ("p", "q", "r", "s", None, "1")
Statement = tuple[str, list[Any]]


@dataclass(frozen=True)
class Case:
    """A schema, its list, and the values that its keys and its unique column are given."""

    schema: tuple[str, ...]
    tables: str = "t\n"
    keys: tuple[Any, ...] = NUMBERS
    words: tuple[Any, ...] = WORDS
    locals: tuple[int, ...] = (0,)
    shifts: bool = True


def t(key: str = "id INTEGER PRIMARY KEY", word: str = "u TEXT UNIQUE", more: str = "", options: str = "") -> str:
    return f"CREATE TABLE t ({key}, {word}, v, loc INTEGER DEFAULT 0{more}) {options}"


MIXED = (1, 2, 3, "1", "2", 1.0, 2.5, b"1", b"\x00\xff", "x", 'é"\\/', "a\0b", -1)
CASES = {
    "plain": Case((t(),)),
    "filtered": Case((t(),), 't where="loc = 0"\n', locals=(0, 0, 1)),
    "filtered, no unique": Case((t(word="u TEXT"),), 't where="loc = 0"\n', locals=(0, 0, 1)),
    "excluded": Case((t(),), "t exclude=v\n"),
    "any value": Case((t("id PRIMARY KEY NOT NULL", "u UNIQUE"),), keys=MIXED, words=MIXED, shifts=False),
    "key may be null": Case((t("id TEXT PRIMARY KEY"),), keys=("a", "b", "c", None, None), shifts=False),
    "without case": Case(
        (t("id TEXT COLLATE NOCASE PRIMARY KEY", options="WITHOUT ROWID"),), keys=("a", "A", "b", "B", 'é"\\/'), shifts=False
    ),
    "word without case": Case(
        (t(word="u TEXT"), "CREATE UNIQUE INDEX w ON t (u COLLATE NOCASE)"), words=("a", "A", "b", "B", None)
    ),
    "real key": Case(
        (t("id REAL PRIMARY KEY NOT NULL", "u NUMERIC UNIQUE"),), keys=(1, 2, 3, 1.5, 1e20), words=(1, "1", 1.5, None)
    ),
    "partly unique": Case((t(word="u TEXT"), "CREATE UNIQUE INDEX w ON t (u) WHERE v IS NOT NULL")),
    "unique, computed": Case((t(word="u TEXT", more=", g TEXT AS (u || 'x') STORED UNIQUE, h TEXT AS (v || u) UNIQUE"),)),
    "composite key": Case((t("id INTEGER NOT NULL, j INTEGER NOT NULL DEFAULT 1", more=", PRIMARY KEY (id, j)"),)),
    "children": Case(
        (
            t(),
            "CREATE TABLE c (id INTEGER, n INTEGER, x TEXT UNIQUE, PRIMARY KEY (id, n),"
            " FOREIGN KEY (id) REFERENCES t (id) ON UPDATE CASCADE ON DELETE CASCADE)",
            "CREATE TABLE d (k INTEGER PRIMARY KEY, u TEXT REFERENCES t (u) ON UPDATE CASCADE ON DELETE SET NULL)",
        ),
        "t\nc\nd\n",
    ),
    "children by a word": Case(
        (t(), "CREATE TABLE d (k INTEGER PRIMARY KEY, u TEXT REFERENCES t (u) ON UPDATE CASCADE ON DELETE CASCADE)"),
        "t\nd\n",
    ),
    "triggers after": Case(
        (
            REPLAYING,
            t(),
            f"CREATE TRIGGER a AFTER UPDATE OF id ON t {MINE} BEGIN UPDATE t SET v = 'm' || NEW.id WHERE id = NEW.id; END",
            f"CREATE TRIGGER b AFTER INSERT ON t {MINE} BEGIN UPDATE t SET v = 'n' WHERE id = NEW.id;"
            " DELETE FROM t WHERE id = NEW.id + 3; END",
        )
    ),
    "triggers before": Case(
        (
            REPLAYING,
            t(more=", rev INTEGER DEFAULT 0"),
            f"CREATE TRIGGER a BEFORE UPDATE OF id, u ON t {MINE} BEGIN UPDATE t SET rev = rev + 1 WHERE id = OLD.id; END",
            f"CREATE TRIGGER b BEFORE UPDATE OF id ON t {MINE} AND NEW.id = 2 BEGIN DELETE FROM t WHERE id = 2 AND id <> OLD.id; END",
            f"CREATE TRIGGER c BEFORE UPDATE OF id ON t {MINE} AND NEW.id = 3"
            " BEGIN UPDATE t SET id = id + 100, u = NULL WHERE id = 3 AND id <> OLD.id; END",
        )
    ),
    "triggers elsewhere": Case(
        (
            REPLAYING,
            t(),
            "CREATE TABLE c (id INTEGER PRIMARY KEY, x TEXT UNIQUE)",
            f"CREATE TRIGGER a BEFORE INSERT ON t {MINE} BEGIN INSERT OR IGNORE INTO c (x) VALUES (NEW.u); END",
            f"CREATE TRIGGER b AFTER UPDATE ON t {MINE} BEGIN INSERT OR REPLACE INTO c (id, x) VALUES (NEW.id % 4, NEW.u); END",
        ),
        "t\nc\n",
    ),
}


def statement(chance: random.Random, case: Case) -> Statement:
    """Of every kind that a program may make of `t` and of its children."""
    children = [name for name in ("c", "d") if any(f"CREATE TABLE {name} " in sql for sql in case.schema)]
    if children and "REFERENCES" in "".join(case.schema) and chance.random() < 0.5:
        return _of_a_child(chance, children)
    how = chance.choice(["", "", "OR IGNORE", "OR FAIL", "OR ABORT", "OR REPLACE", "OR REPLACE"])
    key, other = chance.choice(case.keys), chance.choice(case.keys)
    word, local = chance.choice(case.words), chance.choice(case.locals)
    kind = chance.random()
    if kind < 0.45:
        rows = [
            (
                chance.choice(case.keys),
                chance.choice(case.words),
                chance.choice([1, None, "v", 2.5]),
                chance.choice(case.locals),
            )
            for _ in range(chance.randint(1, 3))
        ]
        upserts = ["", "", " ON CONFLICT DO UPDATE SET u = excluded.u, loc = excluded.loc", " ON CONFLICT DO NOTHING"]
        upsert = "" if how else chance.choice(upserts)
        places = ", ".join(["(?, ?, ?, ?)"] * len(rows))
        return f"INSERT {how} INTO t (id, u, v, loc) VALUES {places}{upsert}", [value for row in rows for value in row]
    if kind < 0.6:
        return f"UPDATE {how} t SET id = ? WHERE id IS ?", [key, other]
    if kind < 0.7:
        return f"UPDATE {how} t SET id = ?, u = ?, loc = ? WHERE id IS ?", [key, word, local, other]
    if kind < 0.8:
        return f"UPDATE {how} t SET u = ?, loc = ? WHERE v IS NOT NULL", [word, local]
    if kind < 0.85 and case.shifts:
        return f"UPDATE {how} t SET id = id + ?", [chance.choice([1, -1, 2])]
    if kind < 0.92:
        return "UPDATE t SET v = ?, loc = ? WHERE id IS ?", [chance.choice([1, "z"]), local, key]
    return "DELETE FROM t WHERE id IS ? OR u IS ?", [key, word]


def _of_a_child(chance: random.Random, children: list[str]) -> Statement:
    how, child = chance.choice(["", "OR REPLACE", "OR IGNORE"]), chance.choice(children)
    number, small, word = chance.choice(NUMBERS), chance.randint(1, 3), chance.choice(WORDS[:5])
    if child == "c":
        if chance.random() < 0.6:
            return f"INSERT {how} INTO c VALUES (?, ?, ?)", [number, small, word]
        return f"UPDATE {how} c SET n = ?, x = ? WHERE id = ?", [small, word, number]
    if chance.random() < 0.6:
        return f"INSERT {how} INTO d VALUES (?, ?)", [small, word]
    return f"UPDATE {how} d SET k = ?, u = ? WHERE k = ?", [small, word, chance.randint(1, 3)]


@contextmanager
def program(path: str) -> Iterator[sqlite3.Connection]:
    link = sqlite3.connect(path, isolation_level=None)
    link.execute("PRAGMA foreign_keys = ON")
    try:
        yield link
    finally:
        link.close()


def work(link: sqlite3.Connection, chance: random.Random, case: Case) -> list[object]:
    """Some transactions; what was done, for whoever has to find out why they differ."""
    done: list[object] = []
    for _ in range(chance.randint(1, 4)):
        link.execute("BEGIN IMMEDIATE")
        for _ in range(chance.randint(1, 4)):
            one = statement(chance, case)
            try:
                link.execute(*one)
                done.append(one)
            except sqlite3.IntegrityError as exc:
                done.append((one, str(exc)))
        end = "COMMIT" if chance.random() < 0.9 else "ROLLBACK"
        link.execute(end)
        done.append(end)
    return done


@pytest.mark.parametrize(
    "seeds", [range(40), pytest.param(range(40, 3000), marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)
@pytest.mark.parametrize("name", CASES)
def test_any_statements_leave_the_nodes_equal(tmp_path: Path, name: str, seeds: range) -> None:
    case = CASES[name]
    urls = iter([f"sqlite:///{tmp_path / 'primary.db'}", f"sqlite:///{tmp_path / 'secondary.db'}"])
    cluster = make_cluster(
        tmp_path / "c",
        "sqlite",
        NO_BROKER,
        lambda _kind: next(urls),
        schema=case.schema,
        tables=case.tables,
        nodes=("st1", "st2"),
    )
    pipeline = Pipeline(cluster)
    try:
        with program(str(tmp_path / "primary.db")) as link:
            for seed in seeds:
                done = work(link, random.Random(seed), case)
                outbox = link.execute(
                    "SELECT table_name, kind, columns_json, rows_json FROM stsync_outbox ORDER BY id"
                ).fetchall()
                pipeline.move()
                wrong = _wrong(pipeline, case)
                assert not wrong, "\n".join(map(str, [f"seed {seed}", *wrong, *done, *outbox]))
    finally:
        pipeline.close()


def _wrong(pipeline: Pipeline, case: Case) -> list[str]:
    found = pipeline.wrong()
    if None not in case.keys:
        return found
    query = (
        "SELECT quote(id), quote(u), quote(v), loc FROM t WHERE id IS NOT NULL ORDER BY 1"  # the others stay where they are
    )
    here, there = pipeline.secondary.rows(query), pipeline.primary.rows(query)
    extra = pipeline.secondary.rows("SELECT 'extra', v FROM t WHERE id IS NULL")
    return [one for one in found if "quarantined" in one] + [f"{here} {extra}" for _ in range(here != there or bool(extra))]
