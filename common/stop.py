"""Words between threads that waits on descriptors see: to stop the process by, and to wake one of them by."""

import contextlib
import os
import select
import signal
from types import FrameType


class _Piped:
    """A byte in a pipe is all of it: a signal handler may write one whatever the interrupted code holds, a lock it may not take."""

    def __init__(self) -> None:
        self._pipe: tuple[int, ...] = ()
        self._pipe = self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def __del__(self) -> None:
        """Give the pipe back: one process may make many of these."""
        for one in self._pipe:
            os.close(one)

    def _say(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: said often enough
            os.write(self._write, b"x")


class Stop(_Piped):
    """Set once; every wait of the process also waits for it (STYLE 6)."""

    def __init__(self) -> None:
        super().__init__()
        self._working = False

    def set(self) -> None:
        """Ask everything to finish the unit at hand and end."""
        self._say()

    def is_set(self) -> bool:
        """Whether the process is to stop."""
        return self.wait(0)

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds; True when the process is to stop."""
        return bool(select.select([self._read], [], [], max(0.0, timeout))[0])

    def fileno(self) -> int:
        """Readable once stop is set."""
        return self._read

    def on_signals(self) -> None:
        """SIGTERM and SIGINT end the process at once, in order, until `working`; from then on they only set it. To be called from
        the main thread; whichever thread the system gives the signal to, all see it."""

        def handler(_number: int, _frame: FrameType | None) -> None:
            self.set()
            if not self._working:
                raise SystemExit(0)  # whatever the main thread waits for, a database that says nothing perhaps

        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, handler)
        # The handler waits for the main thread, and that waits for the pipe.
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def working(self) -> None:
        """Units of work are under way from now on, which are to be finished."""
        self._working = True


class Bell(_Piped):
    """Any thread rings it; one waits for it, and does not where it was rung since."""

    def ring(self) -> None:
        """Wake who waits."""
        self._say()

    def wait(self, stop: Stop, timeout: float) -> bool:
        """Wait at most `timeout` seconds; True when the process is to stop."""
        readable, _, _ = select.select([stop.fileno(), self._read], [], [], timeout)
        if self._read in readable:
            os.read(self._read, select.PIPE_BUF)
        return stop.fileno() in readable
