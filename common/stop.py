"""One word to stop a process by, that waits on events and on descriptors both see."""

import os
import signal
import threading
from types import FrameType


class Stop:
    """Set once; every wait of the process also waits for it (STYLE 6)."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._read, self._write = os.pipe()

    def set(self) -> None:
        """Ask everything to finish the unit at hand and end."""
        if not self._event.is_set():
            self._event.set()
            os.write(self._write, b"x")

    def is_set(self) -> bool:
        """Whether the process is to stop."""
        return self._event.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds; True when the process is to stop."""
        return self._event.wait(timeout)

    def fileno(self) -> int:
        """Readable once stop is set."""
        return self._read

    def on_signals(self) -> None:
        """SIGTERM and SIGINT set it; to be called from the main thread."""

        def handler(_number: int, _frame: FrameType | None) -> None:
            self.set()

        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, handler)
