"""What a long drain does at the same time: the next page is read, and the one before it is filed, while one is composed.

The threads are daemons, as the service's others are: those of an executor would keep the process from ending while a database says
nothing.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import Final, TypeVar

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
    given: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
    waiting: deque[Future[None]] = deque()

    def work() -> None:
        while (task := given.get()) is not None:
            task()

    def run(task: Callable[[], None]) -> None:
        while len(waiting) > _BACKLOG:
            waiting.popleft().result()
        waiting.append(Future())
        given.put(partial(_settle, waiting[-1], task))

    thread = Thread(target=work, name="stsync-relay-behind", daemon=True)
    thread.start()
    try:
        yield run
    finally:
        given.put(None)
        thread.join()
    for one in waiting:
        one.result()


def _settle(future: Future[Item], task: Callable[[], Item]) -> None:
    try:
        future.set_result(task())
    except BaseException as exc:  # noqa: BLE001 (raised again where the result is wanted)
        future.set_exception(exc)
