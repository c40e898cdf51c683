"""Whatever rows of a secondary's own hold up, in whatever order: once they are gone the nodes are equal, nothing waits (TRAPS 29)."""

import random
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from consumer import retries
from tests.integration.conftest import MakePipeline
from tests.integration.test_refused_rows import Clock
from tests.pipeline import Pipeline

NOCASE = "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
KEYS = {  # (schema.Equality)
    "exact": {"sqlite": "TEXT", "mariadb": "VARCHAR(20) COLLATE utf8mb4_nopad_bin", "postgresql": "VARCHAR(20)"},
    "without case": {
        "sqlite": "TEXT COLLATE NOCASE",
        "mariadb": "VARCHAR(20) COLLATE utf8mb4_general_ci",
        "postgresql": "VARCHAR(20) COLLATE nocase",
    },
}
# What MariaDB hands on to children it tells nobody: what waits for such a row is held, and only a full synchronization heals it.
RULE = {"sqlite": "ON UPDATE CASCADE ON DELETE CASCADE", "mariadb": "", "postgresql": "ON UPDATE CASCADE ON DELETE SET NULL"}
NAMES, WORDS = ("a", "A", "b", "B", "á"), ("x", "y", "z")
MADE = "INSERT INTO p VALUES (:k, :u, :v)", "INSERT INTO c VALUES (:k, :k2, :u, :v)"
CHANGED = (
    "UPDATE p SET u = :u, v = :v WHERE id = :k",
    "UPDATE c SET u = :u, v = :v, pid = :k2 WHERE id = :k",
    "UPDATE {t} SET v = :v WHERE id = :k",
    "UPDATE {t} SET id = :k2 WHERE id = :k",
    "UPDATE {t} SET id = :k2, u = :u WHERE id = :k",
    "DELETE FROM {t} WHERE id = :k",
)
IN_THE_WAY = (
    "INSERT INTO p VALUES ('mine', :u, 'o')",
    "INSERT INTO c VALUES ('mine', NULL, :u, 'o')",
    "DELETE FROM p WHERE id = 'mine'",
    "DELETE FROM c WHERE id = 'mine'",
)


@pytest.fixture(params=KEYS)
def pipeline(request: pytest.FixtureRequest, new_pipeline: MakePipeline, database_kind: str) -> Pipeline:
    key = KEYS[request.param][database_kind]
    foreign = f", FOREIGN KEY (pid) REFERENCES p (id) {RULE[database_kind]}"
    if (
        request.param != "exact"
    ):  # a parent's new spelling, where it comes late, is refused or handed on for children that came later
        foreign = ""
    return new_pipeline(
        database_kind,
        *([NOCASE] if key.endswith("nocase") else []),
        f"CREATE TABLE p (id {key} NOT NULL PRIMARY KEY, u VARCHAR(20) UNIQUE, v VARCHAR(20))",
        f"CREATE TABLE c (id {key} NOT NULL PRIMARY KEY, pid {key}, u VARCHAR(20) UNIQUE, v VARCHAR(20){foreign})",
        tables="p\nc\n",
    )


@dataclass
class Round:
    """What happens with one seed; `done` tells of it when it went wrong."""

    pipeline: Pipeline
    clock: Clock
    seed: int
    done: list[Any] = field(default_factory=list)

    def run(self) -> None:
        """All of it, and then what was in the way is gone."""
        chance = random.Random(self.seed)
        for _ in range(chance.randrange(3, 14)):
            if chance.random() < 0.35:
                self._try("secondary", [(chance.choice(IN_THE_WAY), {"u": chance.choice(WORDS)})])
            self._try("primary", [self._change(chance) for _ in range(chance.choice((1, 1, 1, 2, 3)))])
            if chance.random() < 0.4:
                self.clock.now += 60
            self.pipeline.move()
        self._try("secondary", [(statement, {}) for statement in IN_THE_WAY[2:]])
        for _ in range(8):
            self.clock.now += 60
            self.pipeline.move()

    def _change(self, chance: random.Random) -> tuple[str, dict[str, Any]]:
        statement = chance.choice((*MADE, *CHANGED)).format(t=chance.choice("pc"))
        names = (chance.choice(NAMES) for _ in range(2))
        values = dict(zip(("k", "k2"), names, strict=True)) | {"u": chance.choice((*WORDS, None)), "v": str(len(self.done))}
        return statement, {name: value for name, value in values.items() if f":{name}" in statement}

    def _try(self, node: str, statements: list[tuple[str, dict[str, Any]]]) -> None:
        """In one transaction, without those that the database refuses."""
        with getattr(self.pipeline, node).engine.begin() as connection:
            for statement, values in statements:
                bound = {name: value for name, value in values.items() if f":{name}" in statement}
                attempt = connection.begin_nested()
                try:
                    connection.execute(text(statement), bound)
                except DBAPIError:
                    attempt.rollback()
                else:
                    attempt.commit()
                    self.done.append((node, statement, bound))


@pytest.mark.parametrize(
    "seeds",
    [range(12), pytest.param(range(12, 400), marks=[pytest.mark.long, pytest.mark.timeout(900)])],
    ids=["few", "many"],
)
def test_what_was_held_up_ends_equal(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, seeds: range) -> None:
    clock = Clock(time.monotonic() + 60)
    monkeypatch.setattr(retries, "time", clock)
    for seed in seeds:
        one = Round(pipeline, clock, seed)
        one.run()
        assert pipeline.wrong() == [], (seed, one.done)
        pipeline.primary.execute("DELETE FROM c", "DELETE FROM p")
        pipeline.move()
