"""Who only looks whether a service runs is not taken for one, and one that runs is found."""

import threading

import pytest

from common import service_lock
from common.database import Database
from common.settings import DatabaseSettings
from tests.conftest import NewDatabase


@pytest.fixture
def database(new_database: NewDatabase, database_kind: str) -> Database:
    return Database(DatabaseSettings(url=new_database(database_kind)))  # type: ignore[arg-type]


def test_a_glance_is_no_service(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two `status` at once on a stopped node: each takes the lock for a moment."""
    other = database.open()
    assert database.dialect.lock(other)
    refused = threading.Event()
    asked = database.dialect.lock

    def ask(*arguments: object) -> bool:
        found = asked(*arguments)  # type: ignore[arg-type]
        if not found and not refused.is_set():
            other.close()  # the glance is over
            refused.set()
        return found

    monkeypatch.setattr(database.dialect, "lock", ask)
    with database.connect() as connection:
        assert service_lock.lock(database, connection)
    assert refused.is_set()


def test_a_lock_that_is_kept_is_a_service(database: Database) -> None:
    other = database.open()
    assert database.dialect.lock(other)
    with database.connect() as connection:
        assert not service_lock.lock(database, connection)
    other.close()
