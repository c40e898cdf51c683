"""Programs that change the primary's tables at random, from a seed, several at once and in each other's way.

Overlapping transactions (on SQLite they queue), savepoints rolled back and released, references to the own table, unique values
that swap, parents that go, keys that change, rows that cross the row filter, bulk statements. What fails is counted by its kind.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from tests.faults.conftest import wait_told
from tests.harness import Node

WRITERS = 3
UNITS, ACCOUNTS, PARAMS = 30, 300, 30
MOST_FAILED = 0.25  # of all statements and commits; what the steps below bring about by themselves is about a tenth
_BEGIN = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "BEGIN", "mysql": "BEGIN"}
_KINDS = {
    "40P01": "deadlock", "40001": "deadlock", "23505": "unique", "23503": "foreign key",
    1213: "deadlock", 1205: "busy", 1062: "unique", 1761: "unique", 1451: "foreign key", 1452: "foreign key",
    "SQLITE_BUSY": "busy", "SQLITE_BUSY_SNAPSHOT": "busy", "SQLITE_CONSTRAINT_FOREIGNKEY": "foreign key",
    "SQLITE_CONSTRAINT_UNIQUE": "unique", "SQLITE_CONSTRAINT_PRIMARYKEY": "unique",
}  # fmt: skip
_OWN_FAULT = ("unique", "foreign key")
Step = Callable[[Connection, random.Random], None]


def kind_of(exc: DBAPIError) -> str:
    """What kind of failure a driver tells of; `away` for a lost or refused connection."""
    orig = exc.orig
    for code in (getattr(orig, "sqlstate", None), getattr(orig, "sqlite_errorname", None), *getattr(orig, "args", ())[:1]):
        if code in _KINDS:
            return _KINDS[code]
    lost = exc.connection_invalidated or getattr(orig, "sqlstate", None) in (None, "57P01", "57P02", "57P03")
    if lost and type(orig).__name__ in ("OperationalError", "AdminShutdown", "CannotConnectNow", "CrashShutdown"):
        return "away"
    return f"unexpected: {exc}"


@dataclass
class Writers:
    """Several programs, each a thread with transactions of its own; `committed` counts those of all."""

    node: Node
    seed: int
    pace_s: float
    committed: int = 0
    tried: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    error: BaseException | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    _moments: list[float] = field(default_factory=list, repr=False)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> list[threading.Thread]:
        threads = [threading.Thread(target=self._run, args=(number,)) for number in range(WRITERS)]
        for thread in threads:
            thread.start()
        return threads

    def standstill_s(self, since: float) -> float:
        """The longest time from that monotonic moment until now in which none of them committed anything."""
        with self._guard:
            moments = [since, *(one for one in self._moments if one > since), time.monotonic()]
        return max(later - earlier for earlier, later in pairwise(moments))

    def _run(self, number: int) -> None:
        chance = random.Random(self.seed * 100 + number)
        engine = self.node.bare_engine()
        try:
            while not self.stop.is_set():
                try:
                    with engine.connect() as connection:
                        self._transaction(connection, chance)
                except DBAPIError as exc:
                    self._count(kind_of(exc))
                self.stop.wait(chance.random() * self.pace_s)
        except BaseException as exc:
            self.error = exc
            raise
        finally:
            engine.dispose()

    def _count(self, failure: str | None = None, *, committed: int = 0) -> None:
        with self._guard:
            self.tried += 1
            self.committed += committed
            if committed:
                self._moments.append(time.monotonic())
            if failure is not None:
                self.failed[failure] += 1

    def _transaction(self, connection: Connection, chance: random.Random) -> None:
        say(connection, _BEGIN[connection.dialect.name])
        try:
            for number in range(chance.randint(1, 5)):
                self._under_savepoint(connection, chance, f"s{number}")
            say(connection, "ROLLBACK" if chance.random() < 0.1 else "COMMIT")
        except BaseException as exc:
            if isinstance(exc, DBAPIError) and kind_of(exc) == "away":
                connection.invalidate()
            else:
                say(connection, "ROLLBACK")
            raise
        self._count(committed=1)

    def _under_savepoint(self, connection: Connection, chance: random.Random, name: str) -> None:
        """A step or two; what fails by its own fault is undone and the transaction goes on, as programs do."""
        say(connection, f"SAVEPOINT {name}")
        try:
            for step in chance.choices(_STEPS, weights=_WEIGHTS, k=chance.randint(1, 2)):
                step(connection, chance)
            self._count()
        except DBAPIError as exc:
            if kind_of(exc) not in _OWN_FAULT:
                raise
            self._count(kind_of(exc))
            say(connection, f"ROLLBACK TO SAVEPOINT {name}")
            return
        if chance.random() < 0.2:
            say(connection, f"ROLLBACK TO SAVEPOINT {name}")
        elif chance.random() < 0.8:
            say(connection, f"RELEASE SAVEPOINT {name}")


def say(connection: Connection, statement: str, **values: object) -> None:
    connection.execute(text(statement), values)


def _one(connection: Connection, query: str, **values: object) -> object:
    return connection.execute(text(query), values).scalar()


def _unit(connection: Connection, chance: random.Random) -> int:
    """A unit that is there, made if it is not."""
    key = chance.randint(1, UNITS)
    if _one(connection, "SELECT 1 FROM unit WHERE id = :k", k=key) is None:
        say(connection, "INSERT INTO unit VALUES (:k, :n, NULL)", k=key, n=f"u{key}-{chance.random()}")
    return key


def _insert(connection: Connection, chance: random.Random) -> None:
    key, unit = chance.randint(1, ACCOUNTS), _unit(connection, chance)
    if _one(connection, "SELECT 1 FROM account WHERE id = :k", k=key) and chance.random() < 0.9:
        say(connection, "DELETE FROM account WHERE id = :k", k=key)  # and its logins, by the cascade
    at = {"k": key, "u": unit, "n": f"n{chance.random()}", "t": "x" * chance.randint(0, 3000)}
    say(connection, "INSERT INTO account VALUES (:k, :n, :u, :t, 'now')", **at)
    say(connection, "INSERT INTO login VALUES (:k, :n, 'd'), (:k, 'second', 'e')", k=key, n=at["n"])


def _update(connection: Connection, chance: random.Random) -> None:
    name = f"u{chance.random()}"
    at = {"n": name, "l": name, "m": chance.randint(5, 40), "r": chance.randint(0, 4)}
    say(connection, "UPDATE account SET note = :n, last_login = :l WHERE id % :m = :r", **at)
    say(connection, "UPDATE unit SET name = :n WHERE id = :k", k=chance.randint(1, UNITS), n=name)


def _parent(connection: Connection, chance: random.Random) -> None:
    """A reference to the own table; in a circle too."""
    child, parent = _unit(connection, chance), _unit(connection, chance)
    say(connection, "UPDATE unit SET parent = :p WHERE id = :c", c=child, p=parent)


def _swap(connection: Connection, chance: random.Random) -> None:
    table = chance.choice(["account", "unit"])
    rows = connection.execute(
        text(f"SELECT id, name FROM {table} WHERE id >= :k ORDER BY id LIMIT 2"), {"k": chance.randint(1, UNITS)}
    ).all()
    if len(rows) == 2:
        (one, name), (other, another) = rows
        for key, value in ((one, f"~{chance.random()}"), (other, name), (one, another)):
            say(connection, f"UPDATE {table} SET name = :n WHERE id = :k", n=value, k=key)


def _delete(connection: Connection, chance: random.Random) -> None:
    """Parents: accounts whose logins go with them, and a unit that is let go of first, or not."""
    say(connection, "DELETE FROM account WHERE id % :m = 1", m=chance.randint(20, 60))
    unit = chance.randint(1, UNITS)
    if chance.random() < 0.8:
        say(connection, "UPDATE account SET unit_id = NULL WHERE unit_id = :u", u=unit)
        say(connection, "UPDATE unit SET parent = NULL WHERE parent = :u", u=unit)
    say(connection, "DELETE FROM unit WHERE id = :u", u=unit)


def _rekey(connection: Connection, chance: random.Random) -> None:
    """An account with its logins, and now and then a key that is taken."""
    old = _one(connection, "SELECT min(id) FROM account WHERE id >= :k", k=chance.randint(1, ACCOUNTS))
    new = chance.randint(1, ACCOUNTS * 3)
    say(connection, "UPDATE account SET id = :n, note = 'moved' WHERE id = :k", k=old, n=new)


def _bulk(connection: Connection, chance: random.Random) -> None:
    """Many rows in one statement, and rows that cross the row filter in both directions."""
    first = chance.randint(0, PARAMS - 10)
    say(connection, "DELETE FROM param WHERE name >= :a AND name < :b", a=f"p{first:03}", b=f"p{first + 10:03}")
    values = ", ".join(f"('p{one:03}', 's', :v, {chance.randint(0, 1)})" for one in range(first, first + 10))
    say(connection, f"INSERT INTO param VALUES {values}", v="v" * chance.randint(0, 300))
    say(connection, "UPDATE param SET islocal = 1 - islocal WHERE name = :p", p=f"p{chance.randint(0, PARAMS):03}")


_STEPS: list[Step] = [_insert, _update, _parent, _swap, _delete, _rekey, _bulk]
_WEIGHTS = [6, 4, 3, 2, 1, 2, 1]


@contextmanager
def writing(node: Node, seed: int, enough: int = 40, *, pace_s: float = 0.02, away: bool = False) -> Iterator[Writers]:
    """Writes while the block runs, and at least so many transactions before it ends.

    `pace_s`: how long a writer rests at most between two transactions; `away`: the database may be killed.
    """
    writers = Writers(node, seed, pace_s)
    threads = writers.start()
    try:
        yield writers
        more(writers, enough)
    finally:
        writers.stop.set()
        for thread in threads:
            thread.join()
    assert writers.error is None, writers
    expected = {"deadlock", "unique", "foreign key", "busy"} | ({"away"} if away else set())
    assert set(writers.failed) <= expected, writers.failed
    own = sum(count for kind, count in writers.failed.items() if kind != "away")
    assert own <= MOST_FAILED * writers.tried, writers


def more(writers: Writers, count: int) -> None:
    """Wait for so many more transactions."""
    reached = writers.committed + count
    wait_told(lambda: writers.committed >= reached or writers.error, lambda: f"{writers}")


def pause(chance: random.Random, writers: Writers) -> None:
    """Go on after a few more transactions, a number of chance."""
    more(writers, chance.randint(1, 40))
