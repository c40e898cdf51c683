"""A node's own database: connections, and the one border where drivers' exceptions become ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from common.dialects import dialect_for
from common.dialects.base import Dialect
from common.errors import Misconfigured, StsyncError, Unavailable
from common.settings import DatabaseSettings

_WRONG_CREDENTIALS = (
    "password authentication failed",
    "no password supplied",
    "access denied",
    "does not exist",
    "unknown database",
)


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

    @contextmanager
    def guard(self, *, connecting: bool = False) -> Iterator[None]:
        """Translate the drivers' and SQLAlchemy's exceptions inside; `connecting`: they tell why no connection came to be."""
        try:
            yield
        except DBAPIError as exc:
            raise self._translate(exc.orig or exc, connecting=connecting) from exc
        except SQLAlchemyError as exc:  # also where the pool has no connection left
            raise Unavailable(f"database {self.address}: {exc}") from exc
        except self.dialect.errors as exc:
            raise self._translate(exc, connecting=False) from exc

    def _translate(self, exc: BaseException, *, connecting: bool) -> StsyncError:
        message = str(exc.args[-1] if exc.args else exc).strip().replace("\n", " ")
        if connecting and any(word in message.lower() for word in _WRONG_CREDENTIALS):
            return Misconfigured(f"database {self.address}: {message}; check user, password and name in database.url")
        if connecting and "file is not a database" in message:
            return Misconfigured(f"database {self.address}: {message}; check database.url")
        if connecting:
            return Unavailable(f"database {self.address}: cannot be reached: {message}")
        return self.dialect.translate(exc)


def _address(url: URL) -> str:
    if url.host is None:
        return str(url.database)
    return f"{url.host}:{url.port}/{url.database}" if url.port else f"{url.host}/{url.database}"


__all__ = ["Database", "Dialect"]
