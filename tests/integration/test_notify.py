"""PostgreSQL's waker: told of every commit while somebody waits, of none while the relay looks again by itself."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from common.database import Database
from common.dialects.base import Waker
from common.dialects.postgresql import CHANNEL
from common.errors import Unavailable
from common.settings import DatabaseSettings
from common.stop import Stop
from tests.conftest import NewDatabase

SOON_S, LATER_S = 0.005, 0.04  # pauses of single changes, and of a flood of them
LISTENING = text(f"SELECT pid FROM pg_stat_activity WHERE query = 'LISTEN {CHANNEL}'")


@pytest.fixture
def database(new_database: NewDatabase) -> Database:
    return Database(DatabaseSettings(url=SecretStr(new_database("postgresql"))))


@pytest.fixture
def waker(database: Database) -> Iterator[Waker]:
    with closing(database.dialect.waker(database.engine, Stop(), (0.001, 0.1))) as found:
        yield found


def tell(database: Database) -> None:
    with database.connect() as connection:
        connection.execute(text(f"NOTIFY {CHANNEL}"))
        connection.commit()


def test_a_commit_wakes_who_waits(database: Database, waker: Waker) -> None:
    assert not waker.wait(0)
    teller = threading.Timer(0.1, tell, [database])
    teller.start()
    assert waker.wait(30)
    teller.join()
    assert not waker.wait(0), "one notification wakes once"


def test_single_changes_are_told_between_two_looks(database: Database, waker: Waker) -> None:
    waker.found(SOON_S)
    assert not waker.wait(0)
    waker.found(SOON_S)
    tell(database)
    assert waker.wait(30)


def test_under_a_flood_writers_wake_nobody_and_nothing_is_missed(database: Database, waker: Waker) -> None:
    """TRAPS 1: what is committed while nobody is told is looked for before anybody waits again."""
    for _ in range(3):
        waker.found(LATER_S)
        waker.found(LATER_S)
        with database.connect() as connection:
            assert not connection.execute(LISTENING).all()
        tell(database)
        assert waker.wait(0), "look once more, without having been told"
        assert not waker.wait(0), "then wait"
        tell(database)
        assert waker.wait(30), "and be told as before"


@pytest.mark.parametrize("doing", ["waiting", "resting", "resuming"])
def test_a_listener_that_is_cut_off_says_so(database: Database, waker: Waker, doing: str) -> None:
    if doing == "resuming":
        waker.found(LATER_S)
    with database.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%LISTEN stsync'"))
    with pytest.raises(Unavailable, match="listens for changes was lost"):
        waker.found(LATER_S) if doing == "resting" else waker.wait(30)
