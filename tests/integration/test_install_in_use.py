"""`install` on a database that is in use: no change is lost, no writer fails or waits long, and who holds it up is named."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from common.dialects import mariadb_ddl, postgresql_ddl
from common.errors import Refused
from deploy.servers import PrivateMariaDB
from publisher import capture
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, Cluster, Node, make_cluster, transaction, wait_for
from tests.pipeline import Pipeline

SCHEMA = tuple(
    f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, name VARCHAR(40), more VARCHAR(40))" for name in ("unit", "other")
)
LISTS = ("unit exclude=more\nother\n", "unit\nother exclude=more\n", "unit\nother\n")


@pytest.fixture
def cluster(tmp_path: Path, database_kind: str, new_database: NewDatabase) -> Iterator[Cluster]:
    """Two nodes with capture installed and no service."""
    nodes = ("st1", "st2")
    made = make_cluster(tmp_path / "c", database_kind, NO_BROKER, new_database, schema=SCHEMA, tables=LISTS[2], nodes=nodes)
    yield made
    for node in made.nodes.values():
        node.close()


def install(node: Node, number: int) -> None:
    """With another list, by which the triggers of both tables change."""
    (node.home / "conf/sync_tables.conf").write_text(LISTS[number % 3])
    capture.install(node.database, node.settings)


def write(node: Node, worker: int, stop: Callable[[], bool]) -> int:
    """Transactions over both tables, in both orders; how many."""
    done = 0
    tables = ("unit", "other") if worker % 2 else ("other", "unit")
    while not stop():
        number = done * 10 + worker
        node.execute(*(f"INSERT INTO {table} (id, name) VALUES ({number}, 'new')" for table in tables))
        node.execute(*(f"UPDATE {table} SET name = 'changed' WHERE id = {number}" for table in tables))
        node.execute(f"DELETE FROM {tables[done % 2]} WHERE id = {number}")
        done += 1
    return done


def test_no_change_is_lost_while_install_runs(cluster: Cluster) -> None:
    """TRAPS 1, 6: ten times, the triggers of both tables anew each time."""
    pipeline = Pipeline(cluster)
    ended = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, cluster.primary, worker, ended.is_set) for worker in range(3)]
        try:
            for number in range(10):
                before = cluster.primary.rows("SELECT count(*) FROM unit")
                wait_for(lambda was=before: cluster.primary.rows("SELECT count(*) FROM unit") != was, "writers")  # type: ignore[misc]
                install(cluster.primary, number)
        finally:
            ended.set()
    assert all(writer.result() for writer in writers), "no writer failed"
    install(cluster.primary, 2)
    try:
        pipeline.move()
        assert pipeline.wrong() == []
    finally:
        pipeline.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """`install` gives up sooner than it does for users."""
    monkeypatch.setattr(postgresql_ddl, "PATIENCE_S", 1.0)
    monkeypatch.setattr(mariadb_ddl, "PATIENCE_S", 1)


def refused(node: Node) -> str:
    """What `install` says behind an open transaction, which is none of the other writers' trouble."""
    with transaction(node) as holder, ThreadPoolExecutor(2) as pool:
        holder.execute(text("INSERT INTO unit (id, name) VALUES (1, 'open')"))
        installing = pool.submit(install, node, 0)
        written = 2
        while not installing.done():
            began = time.monotonic()
            node.execute(f"INSERT INTO unit (id, name) VALUES ({written}, 'other')")
            assert time.monotonic() - began < 10
            written += 1
        with pytest.raises(Refused) as told:
            installing.result()
        holder.rollback()
    assert told.value.exit_code == 3
    assert written > 2
    capture.install(node.database, node.settings)
    assert node.faults() == []
    return str(told.value)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_install_names_the_transaction_that_holds_it_up(cluster: Cluster) -> None:
    """INTERFACE: 3, after a few seconds, and nothing is changed."""
    node = cluster.primary
    (pid,) = node.rows("SELECT pg_backend_pid()")[0]  # the connection that the pool gives to the holder next
    told = refused(node)
    for words in (f"process {pid} of user stsync", '"unit"', "in a transaction since", "run the command again"):
        assert words in told


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("database_kind", ["mariadb"])
def test_install_names_the_transaction_that_holds_it_up_if_it_may(cluster: Cluster, mariadb: PrivateMariaDB) -> None:
    """INTERFACE: 3, after a few seconds; to see the transactions of others takes a right."""
    node = cluster.primary
    told = refused(node)
    for words in ("INNODB_TRX", "PROCESS", "run the command again"):
        assert words in told
    administrator = create_engine(mariadb.admin_url, poolclass=NullPool)
    with administrator.connect() as connection:
        connection.execute(text("GRANT PROCESS ON *.* TO stsync@'127.0.0.1'"))
        try:
            with node.engine.connect() as holder:
                (session,) = holder.execute(text("SELECT CONNECTION_ID()")).one()
                holder.execute(text("INSERT INTO unit (id, name) VALUES (-1, 'open')"))
                with pytest.raises(Refused, match=rf"session {session} of user stsync, in a transaction since "):
                    install(node, 1)
        finally:
            connection.execute(text("REVOKE PROCESS ON *.* FROM stsync@'127.0.0.1'"))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("database_kind", ["postgresql"])
def test_a_reader_does_not_hold_up_an_installation(cluster: Cluster) -> None:
    """DESIGN §4: a dump reads for hours."""
    with transaction(cluster.primary) as reader:
        reader.execute(text("SELECT * FROM unit"))
        install(cluster.primary, 0)
