"""A private PostgreSQL: TCP on 127.0.0.1 only, scram passwords, no Unix socket, no shared files."""

import re
import secrets
import signal
import subprocess
from pathlib import Path

import psycopg
from psycopg import sql

from deploy.servers.base import START_SECONDS, PrivateServer
from deploy.servers.processes import environment, program, run

_VERSIONS = Path("/usr/lib/postgresql")
_FAST = ("fsync = off", "full_page_writes = off", "deadlock_timeout = 100ms")  # a commit still reaches the operating system


class PrivatePostgreSQL(PrivateServer):
    """PostgreSQL whose role `stsync`, no superuser, owns the databases that `new_database` makes."""

    title = "PostgreSQL"
    system_user = "postgres"
    stop_signal = signal.SIGINT  # "fast": roll back what is open and end
    death_signal = "QUIT"  # "immediate": the postmaster takes its children along

    def __init__(self, directory: Path, *, fast: bool = False, keep: bool = False) -> None:
        folders = sorted(_VERSIONS.glob("*/bin"), key=lambda one: _number(one.parent.name), reverse=True)
        self._postgres = program("postgres", *map(str, folders))
        super().__init__(directory, fast=fast, keep=keep)
        self._admin_password = secrets.token_urlsafe(18)
        self._databases = 0

    @property
    def admin_url(self) -> str:
        """The superuser's SQLAlchemy URL of the maintenance database."""
        return f"postgresql+psycopg://postgres:{self._admin_password}@127.0.0.1:{self.port}/postgres"

    def new_database(self, prefix: str = "db", encoding: str = "UTF8") -> str:
        """The SQLAlchemy URL of a new, empty database that belongs to `stsync`."""
        self._databases += 1
        name = f"{prefix}_{self._databases}"
        locale = "C.UTF-8" if encoding == "UTF8" else "C"
        template = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING {} LOCALE {}")
        words = (sql.Identifier(name), sql.Identifier(self.user), sql.Literal(encoding), sql.Literal(locale))
        self._execute(template.format(*words))
        return f"postgresql+psycopg://{self.user}:{self.password}@127.0.0.1:{self.port}/{name}"

    def drop_database(self, url: str) -> None:
        """Drop a database that `new_database` made, cutting its connections."""
        name = url.rpartition("/")[2]
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def kill(self) -> None:
        """SIGKILL the postmaster and its children; their shared memory, which they cannot free, goes too."""
        segment = self._shared_memory() if self.running else None
        super().kill()
        if segment is not None:
            subprocess.run(["ipcrm", "-m", segment], stderr=subprocess.DEVNULL, check=False)

    def _prepare(self) -> None:
        secret = self.owner.write(self.directory / "password", self._admin_password)
        words = [
            str(self._postgres.with_name("initdb")),
            f"--pgdata={self.directory / 'data'}",
            "--username=postgres",
            "--auth=scram-sha-256",
            f"--pwfile={secret}",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        ]
        run([*words, "--no-sync"] if self.fast else words, self.owner, self._env(), self.directory)
        secret.unlink()
        lines = [
            f"port = {self.port}",
            "listen_addresses = '127.0.0.1'",
            "unix_socket_directories = ''",
            "dynamic_shared_memory_type = mmap",  # in the data directory: a crash leaves nothing elsewhere
            "max_connections = 200",
            *(_FAST if self.fast else ()),
        ]
        with (self.directory / "data" / "postgresql.conf").open("a", encoding="utf-8") as conf:
            conf.write("\n".join(["", *lines, ""]))

    def _launch(self) -> None:
        words = [str(self._postgres), "-D", str(self.directory / "data")]
        self._spawn(words, self._env(), "postgresql.log").wait_until(self._serves, START_SECONDS)

    def _serves(self) -> bool:
        query = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(self.user), sql.Literal(self.password))
        try:
            self._execute(query)
        except psycopg.errors.DuplicateObject:
            return True
        except psycopg.OperationalError:
            return False
        return True

    def _execute(self, query: sql.Composed) -> None:
        with psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            password=self._admin_password,
            dbname="postgres",
            autocommit=True,
            connect_timeout=5,
        ) as link:
            link.execute(query)

    def _shared_memory(self) -> str | None:
        """The id of the small System V segment that every postmaster holds."""
        try:
            lines = (self.directory / "data" / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        words = lines[6].split() if len(lines) > 6 else []
        return words[1] if len(words) == 2 else None

    def _env(self) -> dict[str, str]:
        return environment(self.directory)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
