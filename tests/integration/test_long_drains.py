"""Many rows of the outbox at once: pages are read, composed and written at the same time, as one change set or not at all."""

import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import Connection

from common.dialects.base import Dialect, Run
from common.dialects.script import Script
from common.errors import Unavailable
from publisher import journal, outbox
from publisher.composer import Batch
from publisher.outbox import Page
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, make_cluster
from tests.integration.conftest import SCHEMA, TABLES
from tests.pipeline import Pipeline

SERVERS = ("mariadb", "postgresql")  # SQLite has one writer, who is to be brief: there each thing is done after the other
ROWS = 4_321
KILL = {"mariadb": ("CONNECTION_ID()", "KILL {}"), "postgresql": ("pg_backend_pid()", "SELECT pg_terminate_backend({})")}


@pytest.fixture
def pipeline(tmp_path: Path, database_kind: str, new_database: NewDatabase) -> Iterator[Pipeline]:
    """With batches so small that the changes below are many of them."""
    cluster = make_cluster(
        tmp_path / "c",
        database_kind,
        NO_BROKER,
        new_database,
        schema=SCHEMA,
        tables=TABLES,
        nodes=("st1", "st2"),
        settings="[relay]\nbatch_bytes = 4096\npage_rows = 500\n",
    )
    made = Pipeline(cluster)
    yield made
    made.close()


def write(pipeline: Pipeline) -> None:
    """So many rows, each a row of the outbox, and their order matters."""
    units: list[dict[str, Any]] = [
        {"id": one, "name": f"unit {one}", "parent": one - 1 if one > 1 else None} for one in range(1, ROWS + 1)
    ]
    with pipeline.primary.database.connect() as connection:
        for one in units:
            connection.execute(text("INSERT INTO unit (id, name, parent) VALUES (:id, :name, :parent)"), one)
            if one["id"] % 50 == 1:
                connection.execute(text("UPDATE unit SET name = 'other' WHERE id = :id"), one)
                connection.execute(
                    text("UPDATE unit SET name = :name WHERE id = :id"), one | {"name": f"unit of {one['id']}"}
                )
        connection.commit()


def stands(pipeline: Pipeline) -> list[Any]:
    """On the primary: rows of the outbox, of the journal, the position."""
    found = ("count(*), max(sequence) FROM stsync_journal", "sequence, hash FROM stsync_node")
    return [pipeline.waiting(), *(pipeline.primary.rows(f"SELECT {what}") for what in found)]


def hook(monkeypatch: pytest.MonkeyPatch, read: Callable[[Connection], None], written: Callable[[Connection], None]) -> None:
    """Have these called with the connection before each page is read, and before what was made of one is written."""
    pages, append = outbox.pages, journal.append

    def reading(connection: Connection, dialect: Dialect, limit: int, without: Sequence[Run]) -> Iterator[Page]:
        found = pages(connection, dialect, limit, without)
        while True:
            read(connection)
            page = next(found, None)
            if page is None:
                return
            yield page

    def writing(script: Script, epoch: int, batches: Iterable[Batch]) -> None:
        written(script.connection)
        append(script, epoch, batches)

    monkeypatch.setattr(outbox, "pages", reading)
    monkeypatch.setattr(journal, "append", writing)


def killing(pipeline: Pipeline, after: int) -> Callable[[Connection], None]:
    """Ends the connection it is called with at its call of this number."""
    own, end = KILL[pipeline.cluster.kind]
    calls = count(1)

    def kill(connection: Connection) -> None:
        if next(calls) == after:
            cursor = connection.connection.cursor()
            cursor.execute(f"SELECT {own}")
            ((number,),) = cursor.fetchall()
            pipeline.primary.execute(end.format(number))

    return kill


@pytest.mark.parametrize("database_kind", SERVERS)
def test_a_long_drain_is_one_change_set(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRAPS 1: applied as a whole; and it is read ahead and written behind."""
    threads: list[str] = []
    hook(monkeypatch, *[lambda _connection: threads.append(threading.current_thread().name)] * 2)
    write(pipeline)
    pipeline.move()
    assert pipeline.wrong() == []
    assert pipeline.secondary.rows("SELECT count(*) FROM unit") == [(ROWS,)]
    assert stands(pipeline)[0] == 0
    ((batches, last),) = stands(pipeline)[1]
    assert batches == last > 20
    assert {"stsync-relay-ahead", "stsync-relay-behind"} <= set(threads)


@pytest.mark.parametrize("database_kind", SERVERS)
def test_few_rows_that_are_large_do_not_all_stand_in_memory(pipeline: Pipeline) -> None:
    """DESIGN §10: no more than a few pages of what is drained, however many rows that is, and what is published at once."""
    pipeline.relay.drain()
    for number in range(900):
        pipeline.primary.execute(
            f"INSERT INTO account VALUES ({number}, 'a {number}', NULL, repeat('{number % 10}', 60000), NULL)"
        )
    tracemalloc.start()
    try:
        drained = pipeline.relay.drain()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert drained is not None
    assert drained.changes == 900
    assert peak < 30 << 20


@pytest.mark.parametrize("database_kind", SERVERS)
@pytest.mark.parametrize("victim", ["reader", "writer"])
def test_a_connection_lost_in_the_middle_loses_nothing(
    pipeline: Pipeline, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRAPS 8, 29: nothing has happened then, neither in the journal nor in the outbox, and all of it comes afterwards, once."""
    pipeline.primary.execute("INSERT INTO unit VALUES (0, 'zero', NULL)")
    pipeline.move()
    write(pipeline)
    before = stands(pipeline)
    kill, spare = killing(pipeline, after=6), killing(pipeline, after=0)
    with monkeypatch.context() as hooked:
        hook(hooked, *((kill, spare) if victim == "reader" else (spare, kill)))
        with pytest.raises(Unavailable):
            pipeline.relay.drain()
    pipeline.relay.close()
    assert stands(pipeline) == before
    pipeline.restart_relay()
    pipeline.move()
    assert pipeline.wrong() == []
    assert stands(pipeline)[0] == 0
    ((batches, last),) = stands(pipeline)[1]
    assert batches == last
