"""A Stop that could not be made leaves nothing behind that fails later; a Bell wakes who waits, once."""

import ctypes
import errno
import gc
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from common.stop import Bell, Stop


def test_without_descriptors_it_says_so_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    ignored: list[object] = []
    gc.collect()  # what others left behind
    monkeypatch.setattr(os, "pipe", none_left)
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    with pytest.raises(OSError, match="Too many open files"):
        Stop()
    gc.collect()
    assert ignored == []


def test_its_descriptors_are_given_back() -> None:
    made = Stop()
    descriptors = made._read, made._write
    del made
    gc.collect()
    for one in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(one)


def test_a_bell_wakes_who_waits_also_where_it_was_rung_before() -> None:
    bell, stop = Bell(), Stop()
    for _ in range(100_000):  # more than the pipe holds
        bell.ring()
    began = time.monotonic()
    while not bell.wait(stop, 0) and select.select([bell._read], [], [], 0)[0]:
        assert time.monotonic() - began < 30
    waiting = threading.Timer(0.1, bell.ring)
    waiting.start()
    assert not bell.wait(stop, 30)
    assert time.monotonic() - began < 30
    assert not bell.wait(stop, 0)
    stop.set()
    assert bell.wait(stop, 30)
    assert bell.wait(stop, 30), "who is to stop is told each time"


WORKS = """
import threading
from common.stop import Stop
stop = Stop()
stop.on_signals()
stop.working()
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("works", flush=True)
stop.wait(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_whichever_thread_gets_a_signal_the_process_stops(number: signal.Signals) -> None:
    """INTERFACE, run: the system may give it to any of them, and Python's handlers run in the main thread, which waits."""
    with subprocess.Popen([sys.executable, "-c", WORKS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "works\n"
        threads = [int(one.name) for one in Path(f"/proc/{process.pid}/task").iterdir()]
        (other,) = [one for one in threads if one != process.pid]
        try:
            assert ctypes.CDLL(None).tgkill(process.pid, other, int(number)) == 0
            assert process.wait(20) == 0
        finally:
            process.kill()
