"""`stsync` as processes of their own that need not load the program again: forked from one that has.

A cluster of three takes seconds of processor time to load alone. What starts the command from nothing, as a user does, are
test_misconfiguration.py, test_watch.py and the demo.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from common.main import main
from tests import crashpoints

CLOCK = "TESTS_CLOCK"  # names a file: by how many seconds the process's clock is wrong, at every moment

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "tests.warm",
        "common.commands.broker",
        "common.commands.pki",
        "common.commands.run",
        "common.commands.status",
        "common.dialects.mariadb",
        "common.dialects.postgresql",
        "common.dialects.sqlite",
        "consumer.commands.quarantine",
        "consumer.service",
        "publisher.commands.install",
        "publisher.service",
        "pytest",
    ]
)


class WarmProcess:
    """One run of the command; behaves as a subprocess.Popen."""

    def __init__(self, arguments: Sequence[str], out: Path, errors: Path, environment: Mapping[str, str]) -> None:
        self._process: ForkServerProcess = _CONTEXT.Process(
            target=_become,
            args=(list(arguments), str(out), str(errors), dict(os.environ | dict(environment)), str(Path.cwd())),
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("stsync", timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    arguments: Sequence[str], timeout_s: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command to its end; its output as text."""
    with TemporaryDirectory() as directory:
        out, errors = Path(directory, "out"), Path(directory, "errors")
        process = WarmProcess(arguments, out, errors, environment or {})
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        return subprocess.CompletedProcess(["stsync", *arguments], code, out.read_text(), errors.read_text())


def _become(arguments: list[str], out: str, errors: str, environment: dict[str, str], directory: str) -> None:
    """In the new process: what a shell does before it starts a program."""
    for descriptor, path in ((1, out), (2, errors)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    if CLOCK in environment:
        _turn_clock(Path(environment[CLOCK]))
    sys.argv = ["stsync", *arguments]
    if crashpoints.VARIABLE in environment:
        crashpoints.arm(environment[crashpoints.VARIABLE])
    main()


def _turn_clock(wrong_by: Path) -> None:
    """Let the process see the time as a server sees it whose clock is wrong; how time passes stays as it is."""
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + float(wrong_by.read_text())
    time.time_ns = lambda: nanoseconds() + int(float(wrong_by.read_text()) * 1e9)
