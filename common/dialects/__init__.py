"""The one place that knows which dialects there are; only the one that is spoken is loaded, with its driver."""

from functools import cache
from importlib import import_module

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from common.dialects.base import Dialect
from common.errors import Misconfigured

_KNOWN = {  # module and class, and the driver it is written for
    "postgresql": ("common.dialects.postgresql", "Postgresql", "postgresql+psycopg"),
    "mysql": ("common.dialects.mariadb", "Mariadb", "mysql+pymysql"),
    "mariadb": ("common.dialects.mariadb", "Mariadb", "mysql+pymysql"),
    "sqlite": ("common.dialects.sqlite", "Sqlite", "sqlite"),
}


def dialect_for(url: str) -> tuple[Dialect, URL]:
    """The dialect of a database URL; Misconfigured when it is none we speak. The URL (a secret) is never in the text."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as exc:  # the latter of a port that is no number
        raise Misconfigured("database.url: not a database URL, such as postgresql+psycopg://user@host/name") from exc
    backend = parsed.get_backend_name()
    if backend not in _KNOWN:
        raise Misconfigured(f"database.url: {backend!r} is not known; use postgresql+psycopg, mysql+pymysql or sqlite")
    if not parsed.database and backend != "sqlite":  # which says so itself
        raise Misconfigured("database.url: names no database; it comes last, as in postgresql+psycopg://user@host/name")
    module, name, driver = _KNOWN[backend]
    return _loaded(module, name), parsed.set(drivername=driver)


@cache
def _loaded(module: str, name: str) -> Dialect:
    found: Dialect = getattr(import_module(module), name)()
    return found
