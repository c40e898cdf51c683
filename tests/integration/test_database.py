"""A node's database that goes away: told as one of ours, and nowhere else."""

import gc
import logging
import os
import socket
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import event, text

from common.database import Database
from common.errors import Misconfigured, Unavailable
from common.settings import DatabaseSettings
from deploy.servers import PrivatePostgreSQL
from tests.conftest import NewDatabase


def cut(driver: object) -> None:
    """As when the server dies: neither side can say anything more on this connection."""
    fileno = driver.fileno() if hasattr(driver, "fileno") else driver._sock.fileno()  # type: ignore[attr-defined]
    with socket.socket(fileno=os.dup(fileno)) as link:
        link.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
@pytest.mark.parametrize("when", ["connected", "used"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_connection_that_dies_is_told_once(
    new_database: NewDatabase, database_kind: str, when: str, read_only: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """STYLE: no traceback reaches an operator's log, whenever the server dies."""
    database = Database(DatabaseSettings(url=SecretStr(new_database(database_kind))))
    with database.connect() as connection:
        connection.execute(text("SELECT 1"))
    if when == "connected":
        for engine in (database.engine, database.reading):
            event.listen(engine, "checkout", lambda driver, *_: cut(driver))
    with caplog.at_level(logging.DEBUG), pytest.raises(Unavailable), database.connect(read_only=read_only) as connection:  # noqa: PT012
        if when == "used":
            connection.execute(text("SELECT 1"))
            cut(connection.connection.driver_connection)
        connection.execute(text("SELECT 1"))
    assert not caplog.records


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_dead_connection_that_nobody_closes_says_nothing(
    new_database: NewDatabase, database_kind: str, read_only: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """STYLE: SQLAlchemy takes such a one back when it is collected; nothing must be set back on it then."""
    database = Database(DatabaseSettings(url=SecretStr(new_database(database_kind))))
    connection = database.open(read_only=read_only)
    connection.execute(text("SELECT 1"))
    cut(connection.connection.driver_connection)
    with caplog.at_level(logging.DEBUG):
        del connection
        gc.collect()
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("database_kind", ["postgresql", "mariadb"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_connection_whose_other_end_falls_silent_is_given_up(
    new_database: NewDatabase, database_kind: str, read_only: bool
) -> None:
    """TRAPS 29, tcp(7): within half a minute, and statements may take as long as they like meanwhile."""
    database = Database(DatabaseSettings(url=SecretStr(new_database(database_kind))))
    with database.connect(read_only=read_only) as connection:
        driver: Any = connection.connection.driver_connection
        fileno = driver.fileno() if hasattr(driver, "fileno") else driver._sock.fileno()
        with socket.socket(fileno=os.dup(fileno)) as link:
            options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT]
            assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert [link.getsockopt(socket.IPPROTO_TCP, one) for one in options] == [10, 5, 4, 30_000]
        assert getattr(driver, "_read_timeout", None) is None
        connection.rollback()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_hold_every_text_is_refused(postgresql: PrivatePostgreSQL, encoding: str) -> None:
    """TRAPS 30: what it has no letter for could not be applied, nor be kept in its quarantine."""
    url = postgresql.new_database("encoded", encoding)
    database = Database(DatabaseSettings(url=SecretStr(url)))
    told = f"database.url: the database encoded_[0-9]+ is encoded in {encoding}.*UTF8"
    with pytest.raises(Misconfigured, match=told), database.connect():
        pytest.fail("it is connected")
    postgresql.drop_database(url)
