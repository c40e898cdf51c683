"""Who only looks whether a service runs is not taken for one, and one that runs is found."""

import shutil
import threading
from pathlib import Path

import pytest

from common import running
from common.database import Database
from common.settings import DatabaseSettings
from tests.conftest import NewDatabase
from tests.faults.conftest import wait_running
from tests.harness import wait_for
from tests.integration.conftest import MakeCluster


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
        assert running.lock(database, connection)
    assert refused.is_set()


def test_a_lock_that_is_kept_is_a_service(database: Database) -> None:
    other = database.open()
    assert database.dialect.lock(other)
    with database.connect() as connection:
        assert not running.lock(database, connection)
    other.close()


def test_a_file_that_is_replaced_under_the_service_ends_it(new_cluster: MakeCluster) -> None:
    """SQLite has the old one as long as it is open: nothing that is written into the new one would ever be seen."""
    cluster = new_cluster("sqlite", nodes=("st1", "st2"))
    primary = cluster.primary
    primary.start()
    wait_running(primary)
    path = Path(primary.url.removeprefix("sqlite:///"))
    shutil.copy(path, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)
    process = primary.process
    assert process is not None
    wait_for(lambda: process.poll() is not None, "the end of the service")
    assert process.returncode == 5
    assert "the database's file was replaced or removed" in primary.log
