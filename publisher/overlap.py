"""What a long drain does at the same time: the next page is read, and the one before it is filed, while one is composed."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import Final, Self, TypeVar

_BACKLOG: Final = 2  # pages that wait on either side
Item = TypeVar("Item")


@contextmanager
def ahead(items: Iterator[Item]) -> Iterator[Iterator[Item]]:
    """The items, fetched in a thread of its own from now on, while the caller works on those before them; no more than a few are in
    memory. When it is left, nothing is fetched any more."""
    fetched: SimpleQueue[Future[Item | None]] = SimpleQueue()
    room, closed = Semaphore(_BACKLOG), Event()

    def fetch() -> None:
        while room.acquire() and not closed.is_set():
            future: Future[Item | None] = Future()
            _settle(future, partial(next, items, None))
            fetched.put(future)
            if future.exception() is not None or future.result() is None:
                return

    def found() -> Iterator[Item]:
        while (item := fetched.get().result()) is not None:
            room.release()
            yield item

    thread = Thread(target=fetch, name="stsync-relay-ahead", daemon=True)
    thread.start()
    try:
        yield found()
    finally:
        closed.set()
        room.release()
        thread.join()


@contextmanager
def behind() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Takes tasks and runs them in order in a thread of its own; all have run at the end. Raises what a task raised, at one of the
    next or at the end; what was given after it may have run."""
    with _Worker("stsync-relay-behind") as worker:
        waiting: deque[Future[None]] = deque()

        def run(task: Callable[[], None]) -> None:
            while len(waiting) > _BACKLOG:
                waiting.popleft().result()
            waiting.append(worker.submit(task))

        yield run
        for one in waiting:
            one.result()


class _Worker:
    """Runs tasks in order in a thread of its own; all have run when it is left. (An executor's threads would keep the process from
    ending while a database says nothing; this one is a daemon, as the service's other threads are.)"""

    def __init__(self, name: str) -> None:
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._tasks.put(None)
        self._thread.join()

    def submit(self, task: Callable[[], Item]) -> Future[Item]:
        """What comes of it, when it has run."""
        future: Future[Item] = Future()
        self._tasks.put(partial(_settle, future, task))
        return future

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()


def _settle(future: Future[Item], task: Callable[[], Item]) -> None:
    try:
        future.set_result(task())
    except BaseException as exc:  # noqa: BLE001 (raised again where the result is wanted)
        future.set_exception(exc)
