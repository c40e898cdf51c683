"""Processes of ours alone: the right user, ended with their parent, signalled by their id only."""

import os
import pwd
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from deploy.servers.errors import ServerError

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Owner:
    """The user a server runs as: a system user when we are root, else ourselves."""

    uid: int
    gid: int
    switch: bool

    @classmethod
    def named(cls, system_user: str) -> "Owner":
        """Drop to `system_user` when we are root; otherwise stay who we are."""
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid(), switch=False)
        try:
            entry = pwd.getpwnam(system_user)
        except KeyError as exc:
            raise ServerError(f"the system user {system_user} is missing; deploy/setup.sh installs what is needed") from exc
        return cls(entry.pw_uid, entry.pw_gid, switch=True)

    def own(self, path: Path, mode: int) -> Path:
        """Give an existing file or directory to this user, with these permissions."""
        path.chmod(mode)
        if self.switch:
            os.chown(path, self.uid, self.gid)
        return path

    def write(self, path: Path, text: str, mode: int = 0o600) -> Path:
        """Write a small file that only this user can read."""
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
        return self.own(path, mode)

    def make(self, path: Path) -> Path:
        """A directory that only this user can enter."""
        path.mkdir(mode=0o700, exist_ok=True)
        return self.own(path, 0o700)

    def prefix(self, death_signal: str | None) -> list[str]:
        """`setpriv` with the user, then the signal to get when our process dies (setuid would clear it)."""
        words = ["setpriv"]
        if self.switch:
            words += [f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        if death_signal is not None:
            words.append(f"--pdeathsig={death_signal}")
        return [*words, "--"] if len(words) > 1 else []


def environment(home: Path, **more: str) -> dict[str, str]:
    """A bare environment, so that nothing set for a system's own server reaches a private one."""
    return {"PATH": _SYSTEM_PATH, "HOME": str(home), "LANG": "C.UTF-8", **more}


def program(name: str, *folders: str) -> Path:
    """Where a program is: in the given folders first, then on the system's path."""
    found = shutil.which(name, path=os.pathsep.join((*folders, _SYSTEM_PATH)))
    if found is None:
        raise ServerError(f"{name} is not installed; deploy/setup.sh installs what is needed")
    return Path(found)


class Child:
    """A long-running process with its log; `death_signal` (KILL, QUIT) makes it end when our process ends."""

    def __init__(
        self,
        words: Sequence[str],
        owner: Owner,
        env: Mapping[str, str],
        folder: Path,
        log: Path,
        death_signal: str | None,
    ) -> None:
        self.name = Path(words[0]).name
        self.log = log
        command = [*owner.prefix(death_signal), *words]
        with log.open("ab") as sink:
            self._process = _launch(
                lambda: subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    env=env,
                    cwd=folder,
                    start_new_session=True,
                )
            )

    @property
    def pid(self) -> int:
        """The process id; `setpriv` and start scripts replace themselves, so it is the server's own."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until `ready()`; ServerError with the end of the log if the process ends or takes too long."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.alive:
                code = self._process.returncode
                raise ServerError(f"{self.name} ended with code {code} while starting:\n{tail(self.log)}")
            if time.monotonic() > deadline:
                raise ServerError(f"{self.name} did not come up in {seconds:.0f} s:\n{tail(self.log)}")
            time.sleep(0.02)

    def ask(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.alive:
            self._process.send_signal(number)

    def stop(self, number: signal.Signals, seconds: float) -> None:
        """Ask it to end; SIGKILL when it does not within `seconds`."""
        self.ask(number)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL it and all its descendants, and wait until they are gone."""
        family = descendants(self.pid) if self.alive else []
        self._process.kill()
        self._process.wait()
        for pid in family:
            _kill(pid)
        deadline = time.monotonic() + 10
        while any(is_running(pid) for pid in family) and time.monotonic() < deadline:
            time.sleep(0.01)


def run(words: Sequence[str], owner: Owner, env: Mapping[str, str], folder: Path, seconds: float = 60) -> str:
    """Run a command of a server as its user and return what it printed; ServerError when it fails."""
    try:
        done = subprocess.run(
            [*owner.prefix(None), *words],
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise ServerError(f"{Path(words[0]).name} did not end within {seconds:.0f} s") from exc
    if done.returncode != 0:
        text = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise ServerError(f"{Path(words[0]).name} failed with code {done.returncode}: {text}")
    return done.stdout


def descendants(pid: int) -> list[int]:
    """The ids of a process's children, their children and so on."""
    found = []
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:  # it ended meanwhile
        return []
    for thread in threads:
        try:
            children = [int(word) for word in (thread / "children").read_text(encoding="ascii").split()]
        except OSError:  # the thread ended meanwhile
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def is_running(pid: int) -> bool:
    """Whether a process exists and is not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in {
            "Z",
            "X",
        }
    except OSError:
        return False


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]) or f"({path} is empty)"
    except OSError as exc:
        return f"({path} cannot be read: {exc.strerror})"


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


_Work = tuple[Callable[[], "subprocess.Popen[bytes]"], "Future[subprocess.Popen[bytes]]"]


@cache
def _launcher() -> "queue.SimpleQueue[_Work]":
    """The thread that starts every child; it never ends, as a child's death signal follows its *thread*."""
    waiting: queue.SimpleQueue[_Work] = queue.SimpleQueue()
    threading.Thread(target=_launch_forever, args=(waiting,), name="server-launcher", daemon=True).start()
    return waiting


def _launch_forever(waiting: "queue.SimpleQueue[_Work]") -> None:
    while True:
        start, answer = waiting.get()
        try:
            answer.set_result(start())
        except (OSError, subprocess.SubprocessError) as exc:
            answer.set_exception(exc)
        del start, answer


def _launch(start: Callable[[], "subprocess.Popen[bytes]"]) -> "subprocess.Popen[bytes]":
    answer: Future[subprocess.Popen[bytes]] = Future()
    _launcher().put((start, answer))
    try:
        return answer.result()
    except OSError as exc:
        raise ServerError(f"a server cannot be started: {exc}") from exc
