"""PostgreSQL's waker keeps nothing of what woke it: a primary may run for months."""

from contextlib import closing

from pydantic import SecretStr
from sqlalchemy import text

from common.database import Database
from common.dialects.postgresql_waker import CHANNEL, NotifyWaker
from common.settings import DatabaseSettings
from common.stop import Stop
from tests.conftest import NewDatabase

LATER_S = 1.0  # a pause of a flood of changes: nobody is told meanwhile


def test_no_notification_is_kept(new_database: NewDatabase) -> None:
    """Also those that come while it stops to listen, which the driver takes for those of somebody who asks it for them."""
    database = Database(DatabaseSettings(url=SecretStr(new_database("postgresql"))))
    with closing(NotifyWaker(database.engine, Stop())) as waker, database.connect() as connection:
        for _ in range(20):
            for _ in range(5):
                connection.execute(text(f"NOTIFY {CHANNEL}"))
                connection.commit()
            waker.found(LATER_S)
            assert waker.wait(0), "look once more, without having been told"
            assert waker.wait(0), "and again, told from here on"
            assert not waker.wait(0)
        assert not waker._connection._notifies_backlog
        connection.execute(text(f"NOTIFY {CHANNEL}"))
        connection.commit()
        assert waker.wait(30), "and be told as before"
