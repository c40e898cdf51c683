"""The threads of a service: each has an owner and a name, and when one dies the process ends with its reason (STYLE 6)."""

import random
import threading
import time
from collections.abc import Callable

import structlog

from common.backoff import delay_s
from common.errors import Fault, StsyncError, Unavailable
from common.stop import Stop
from common.troubles import Troubles


class Crew:
    """Starts threads, waits for stop, joins them, and hands on the first error."""

    def __init__(self, stop: Stop, troubles: Troubles) -> None:
        self.stop = stop
        self._troubles = troubles
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None
        self._log = structlog.get_logger("service")

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run `work` in a thread; Unavailable makes it start anew after a while, anything else ends the process."""

        def body() -> None:
            attempt = 0
            while not self.stop.is_set():
                began = time.monotonic()
                if attempt:
                    self._troubles.tried(name)
                try:
                    work()
                except Unavailable as exc:
                    if time.monotonic() - began > 30.0:
                        attempt = 0
                    pause = delay_s(attempt, minimum_s=0.2, maximum_s=10.0, random=random.random)
                    self._log.warning("unavailable", thread=name, reason=str(exc), retry_in_s=round(pause, 2))
                    attempt += 1
                    self._troubles.failed(name, str(exc))
                    self.stop.wait(pause)

        def guarded() -> None:
            try:
                body()
            except StsyncError as exc:
                self.fail(exc)
            except BaseException as exc:
                self.fail(exc)
                raise
            finally:
                self.stop.set()

        thread = threading.Thread(target=guarded, name=f"stsync-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def fail(self, error: BaseException) -> None:
        """End the process because of this."""
        if self._error is None:
            self._error = error
        self.stop.set()

    def start_each_second(self, name: str, look: Callable[[], None]) -> None:
        """Do this each second in a thread; as with `start`, Unavailable makes it begin anew after a while."""

        def work() -> None:
            while not self.stop.wait(1.0):
                look()
                self._troubles.over(name)

        self.start(name, work)

    def wait(self) -> None:
        """Wait for stop; the main thread does nothing else."""
        while not self.stop.wait(3600.0):
            continue

    def join(self, timeout_s: float) -> None:
        """After stop: wait for every thread, then raise what ended the process, if anything did."""
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        if isinstance(self._error, StsyncError):
            raise self._error
        if self._error is not None:
            raise Fault(f"a part of the service failed: {type(self._error).__name__}: {self._error}") from self._error
        late = [thread.name for thread in self._threads if thread.is_alive()]
        if late:
            raise Fault(f"{', '.join(late)} did not stop within {timeout_s:.0f} s")
