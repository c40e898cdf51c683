"""The life of a private server, broker or database alike: start, stop, crash, start again, vanish."""

import atexit
import secrets
import shutil
import signal
from pathlib import Path
from typing import ClassVar, Self

from deploy.servers.errors import ServerError
from deploy.servers.ports import Ports
from deploy.servers.processes import Child, Owner

START_SECONDS = 60.0
STOP_SECONDS = 30.0


class PrivateServer:
    """A server of our own in `directory` (absent or empty), on free ports of 127.0.0.1, unprivileged.

    It ends with this process, however that ends, unless `keep` is given. `fast` gives up durability against
    loss of power for speed; a crash of the process alone loses nothing. A context manager, it leaves nothing.
    """

    title: ClassVar[str]
    system_user: ClassVar[str]
    port_count: ClassVar[int] = 1
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    death_signal: ClassVar[str] = "KILL"

    def __init__(self, directory: Path, *, fast: bool = False, keep: bool = False) -> None:
        self.directory = directory.absolute()
        self.fast = fast
        self.user = "stsync"
        self.password = secrets.token_urlsafe(18)
        self.owner = Owner.named(self.system_user)
        self._keep = keep
        self._children: list[Child] = []
        self._prepared = False
        self._claim_directory()
        self._ports = Ports(self.port_count)
        if not keep:
            atexit.register(self.close)

    @property
    def port(self) -> int:
        """The port that clients use."""
        return self._ports.numbers[0]

    @property
    def pid(self) -> int:
        """The id of the server's main process."""
        if not self.running:
            raise ServerError(f"the private {self.title} in {self.directory} does not run; start() it")
        return self._children[-1].pid

    @property
    def pids(self) -> tuple[int, ...]:
        """The ids of every process started here, in the order in which they are best ended."""
        return tuple(child.pid for child in reversed(self._children) if child.alive)

    @property
    def running(self) -> bool:
        """Whether the main process runs."""
        return bool(self._children) and self._children[-1].alive

    def start(self) -> Self:
        """Start it and return when it serves; after `stop` or `kill` on the same data and ports."""
        if self.running:
            return self
        try:
            if not self._prepared:
                self._prepare()
                self._prepared = True
            self._launch()
        except ServerError:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """End it in order; the data stay, `start` goes on from there."""
        for child in reversed(self._children):
            child.stop(self.stop_signal, STOP_SECONDS)
        self._children.clear()

    def kill(self) -> None:
        """SIGKILL every process of it, as a crash would; the data stay."""
        for child in reversed(self._children):
            child.kill()
        self._children.clear()

    def close(self) -> None:
        """Stop it and remove its directory: nothing is left."""
        atexit.unregister(self.close)
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
        self._ports.release()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self) -> None:
        """Make the files that the first start needs."""
        raise NotImplementedError

    def _launch(self) -> None:
        """Start the processes and wait until they serve."""
        raise NotImplementedError

    def _spawn(self, words: list[str], env: dict[str, str], log: str, death_signal: str | None = None) -> Child:
        wanted = None if self._keep else death_signal or self.death_signal
        child = Child(words, self.owner, env, self.directory, self.directory / log, wanted)
        self._children.append(child)
        return child

    def _claim_directory(self) -> None:
        if self.directory.exists() and any(self.directory.iterdir()):
            raise ServerError(f"{self.directory} is not empty; a private {self.title} needs a directory of its own")
        self.directory.mkdir(parents=True, exist_ok=True)
        for parent in self.directory.parents:
            if self.owner.switch and not parent.stat().st_mode & 0o001 and parent.stat().st_uid != self.owner.uid:
                raise ServerError(
                    f"user {self.system_user}, which runs {self.title}, may not pass through {parent}; "
                    "choose a directory whose parents everybody may enter, such as a new one under /tmp"
                )
        self.owner.own(self.directory, 0o700)
