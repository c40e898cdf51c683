"""The one place that knows which dialects there are."""

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from common.dialects.base import Dialect
from common.dialects.mariadb import Mariadb
from common.dialects.postgresql import Postgresql
from common.dialects.sqlite import Sqlite
from common.errors import Misconfigured

_KNOWN: dict[str, Dialect] = {
    "postgresql": Postgresql(),
    "mysql": Mariadb(),
    "mariadb": Mariadb(),
    "sqlite": Sqlite(),
}


def dialect_for(url: str) -> tuple[Dialect, URL]:
    """The dialect of a database URL; Misconfigured when it is none we speak. The URL (a secret) is never in the text."""
    try:
        parsed = make_url(url)
    except ArgumentError as exc:
        raise Misconfigured("database.url: not a database URL, such as postgresql+psycopg://user@host/name") from exc
    backend = parsed.get_backend_name()
    if backend not in _KNOWN:
        raise Misconfigured(f"database.url: {backend!r} is not known; use postgresql+psycopg, mysql+pymysql or sqlite")
    drivers = {
        "postgresql": "postgresql+psycopg",
        "mysql": "mysql+pymysql",
        "mariadb": "mysql+pymysql",
        "sqlite": "sqlite",
    }
    return _KNOWN[backend], parsed.set(drivername=drivers[backend])
