"""A network that misbehaves on purpose: forwards bytes to a server until it is told to cut, or to swallow."""

import random
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

_RESET = struct.pack("ii", 1, 0)  # close sends RST: what was on its way is lost


class Proxy:
    """A TCP proxy on a loopback port of its own.

    `swallow`: bytes go in and never come out, and nobody is told, as where a firewall forgets a connection.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._guard = threading.Lock()
        self._open: set[socket.socket] = set()
        self._flows = threading.Event()
        self._flows.set()
        self._over = False
        self._limit: Callable[[], int] | None = None
        self.cuts = 0

    def __enter__(self) -> Self:
        self._thread(self._accept)
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None) -> None:
        self._over = True
        self._flows.set()
        with suppress(OSError):  # a thread that waits in accept would take one more otherwise
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End every connection at once, in the middle of whatever it carries."""
        with self._guard:
            ending, self._open = self._open, set()
        for one in ending:
            with suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self.cuts += len(ending) // 2

    def cut_after(self, chance: random.Random, most_bytes: int) -> None:
        """End each new connection after so many bytes at most, from now on; 0: none any more."""
        self._limit = partial(chance.randint, 1, most_bytes) if most_bytes else None

    def swallow(self) -> None:
        """Forward nothing until `flow`."""
        self._flows.clear()

    def flow(self) -> None:
        """Forward again, also what was kept meanwhile."""
        self._flows.set()

    def _accept(self) -> None:
        while not self._over:
            with suppress(OSError):
                here, _ = self._listener.accept()
                there = socket.create_connection(("127.0.0.1", self._to), 10)
                there.settimeout(None)
                with self._guard:
                    self._open |= {here, there}
                limit = self._limit() if self._limit else None
                self._thread(partial(self._carry, here, there, limit))
                self._thread(partial(self._carry, there, here, None))

    def _carry(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        carried = 0
        with suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                if limit is not None and carried + len(data) >= limit:
                    target.sendall(data[: limit - carried])
                    self.cuts += 1
                    break
                carried += len(data)
                target.sendall(data)
        for one in (source, target):
            with self._guard:
                self._open.discard(one)
            with suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _thread(self, target: Callable[[], None]) -> None:
        threading.Thread(target=target, daemon=True).start()
