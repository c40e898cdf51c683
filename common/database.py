"""A node's own database: connections, and the one border where drivers' exceptions become ours."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from common.dialects import dialect_for
from common.dialects.base import Dialect
from common.errors import Misconfigured, StsyncError, Unavailable
from common.settings import DatabaseSettings


class Database:
    """Opens connections to the node's database and translates what goes wrong on them."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self.dialect, self._url = dialect_for(settings.url.get_secret_value())
        self.engine: Engine = self.dialect.engine(self._url, settings.connect_timeout_s)
        self.reading: Engine = self.dialect.engine(self._url, settings.connect_timeout_s, read_only=True)

    @property
    def address(self) -> str:
        """Where the database is, without user or password."""
        return _address(self._url)

    @contextmanager
    def connect(self, *, read_only: bool = False) -> Iterator[Connection]:
        """A connection; an open transaction is rolled back at the end unless committed."""
        connection = self.open(read_only=read_only)
        try:
            with self.guard():
                yield connection
        except Unavailable:
            connection.invalidate()  # it may be dead, and closing a dead one politely would fail
            raise
        finally:
            connection.close()

    def open(self, *, read_only: bool = False) -> Connection:
        """A connection that its caller closes; `read_only`: every transaction on it reads one snapshot and blocks nobody."""
        with self.guard(connecting=True):
            return (self.reading if read_only else self.engine).connect()

    def guard(self, *, connecting: bool = False) -> AbstractContextManager[None]:
        """Translate the drivers' and SQLAlchemy's exceptions inside; `connecting`: they tell why no connection came to be."""
        return _Guard(self, connecting)

    def translated(self, exc: BaseException, *, connecting: bool) -> StsyncError | None:
        """What an exception of theirs means; None of any other."""
        if isinstance(exc, DBAPIError):
            return self._translate(exc.orig or exc, connecting=connecting)
        if isinstance(exc, SQLAlchemyError):  # also where the pool has no connection left
            return Unavailable(f"database {self.address}: {exc}")
        if isinstance(exc, self.dialect.errors):
            return self._translate(exc, connecting=False)
        if connecting and isinstance(exc, TypeError):  # an option that the driver has no word for
            return Misconfigured(f"database {self.address}: {exc}; check the options in database.url")
        return None

    def _translate(self, exc: BaseException, *, connecting: bool) -> StsyncError:
        message = " ".join(str(exc.args[-1] if exc.args else exc).split())
        if connecting and self.dialect.refused(exc):
            return Misconfigured(f"database {self.address}: {message}; check user, password and name in database.url")
        if connecting and "file is not a database" in message:
            return Misconfigured(f"database {self.address}: {message}; check database.url")
        if connecting:
            return Unavailable(f"database {self.address}: cannot be reached: {message}")
        return self.dialect.translate(exc)


class _Guard:
    """Made for every change, and so a class of its own: a generator costs several times as much."""

    __slots__ = ("_connecting", "_database")

    def __init__(self, database: Database, connecting: bool) -> None:
        self._database = database
        self._connecting = connecting

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None and (told := self._database.translated(error, connecting=self._connecting)) is not None:
            raise told from error


def _address(url: URL) -> str:
    if url.host is None:
        return str(url.database)
    return f"{url.host}:{url.port}/{url.database}" if url.port else f"{url.host}/{url.database}"


__all__ = ["Database", "Dialect"]
