"""A private MariaDB: its own configuration file alone, TCP on 127.0.0.1, its socket among its data."""

import secrets
from contextlib import suppress
from pathlib import Path

import pymysql

from deploy.servers.base import START_SECONDS, PrivateServer
from deploy.servers.processes import environment, program, run

_FAST = ("innodb_flush_log_at_trx_commit = 2", "innodb_log_file_size = 32M", "innodb_doublewrite = 0")


class PrivateMariaDB(PrivateServer):
    """MariaDB whose user `stsync` has all rights on what `new_database` makes, and on nothing else."""

    title = "MariaDB"
    system_user = "mysql"

    def __init__(self, directory: Path, *, fast: bool = False, keep: bool = False) -> None:
        self._mariadbd = program("mariadbd")
        self._install = program("mariadb-install-db")
        super().__init__(directory, fast=fast, keep=keep)
        self._admin_password = secrets.token_urlsafe(18)
        self._databases = 0

    @property
    def admin_url(self) -> str:
        """The administrator's SQLAlchemy URL."""
        return f"mysql+pymysql://admin:{self._admin_password}@127.0.0.1:{self.port}/mysql"

    def new_database(self, prefix: str = "db") -> str:
        """The SQLAlchemy URL of a new, empty utf8mb4 database."""
        self._databases += 1
        name = f"stsync_{prefix}_{self._databases}"
        self._execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
        return f"mysql+pymysql://{self.user}:{self.password}@127.0.0.1:{self.port}/{name}?charset=utf8mb4"

    def drop_database(self, url: str) -> None:
        """Drop a database that `new_database` made, cutting its connections, whose locks would block it."""
        name = url.rpartition("/")[2].partition("?")[0]
        with self._connect() as link, link.cursor() as cursor:
            cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (name,))
            for (number,) in cursor.fetchall():
                with suppress(pymysql.OperationalError):  # 1094: it ended by itself meanwhile
                    cursor.execute(f"KILL {int(number)}")
            cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")

    def _prepare(self) -> None:
        data = self.directory / "data"
        lines = [
            "[mariadbd]",
            f"datadir = {data}",
            f"port = {self.port}",
            "bind-address = 127.0.0.1",
            "socket = mariadb.sock",  # relative to datadir: a long path would not fit an address
            f"pid-file = {self.directory / 'pid'}",
            f"init-file = {self.directory / 'init.sql'}",
            f"tmpdir = {self.owner.make(self.directory / 'tmp')}",
            "skip-name-resolve",
            "skip-log-bin",
            "character-set-server = utf8mb4",
            "max_allowed_packet = 64M",
            "max_connections = 200",
            *(_FAST if self.fast else ()),
        ]
        self.owner.write(self.directory / "server.cnf", "\n".join(lines) + "\n")
        self.owner.write(self.directory / "init.sql", self._first_words())
        words = [
            str(self._install),
            f"--defaults-file={self.directory / 'server.cnf'}",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
        ]
        run(words, self.owner, self._env(), self.directory)

    def _first_words(self) -> str:
        """What the server runs at each start; one statement a line."""
        mine = f"'{self.user}'@'127.0.0.1'"
        return "\n".join(
            [
                f"ALTER USER root@localhost IDENTIFIED BY '{self._admin_password}';",
                f"CREATE OR REPLACE USER admin@'127.0.0.1' IDENTIFIED BY '{self._admin_password}';",
                "GRANT ALL ON *.* TO admin@'127.0.0.1' WITH GRANT OPTION;",
                f"CREATE OR REPLACE USER {mine} IDENTIFIED BY '{self.password}';",
                f"GRANT ALL ON `stsync\\_%`.* TO {mine};",
                "",
            ]
        )

    def _launch(self) -> None:
        words = [str(self._mariadbd), f"--defaults-file={self.directory / 'server.cnf'}"]
        self._spawn(words, self._env(), "mariadb.log").wait_until(self._serves, START_SECONDS)

    def _serves(self) -> bool:
        try:
            self._connect().close()
        except pymysql.OperationalError:
            return False
        return True

    def _execute(self, statement: str) -> None:
        with self._connect() as link, link.cursor() as cursor:
            cursor.execute(statement)

    def _connect(self) -> "pymysql.connections.Connection[pymysql.cursors.Cursor]":
        return pymysql.connect(
            host="127.0.0.1",
            port=self.port,
            user="admin",
            password=self._admin_password,
            connect_timeout=5,
            autocommit=True,
        )

    def _env(self) -> dict[str, str]:
        return environment(self.directory)
