"""An adaptive poll for databases that cannot wake a waiting program: quick under load, relaxed when idle."""

import math
import time
from collections.abc import Callable

from common.dialects.base import Stoppable

_RELAX = 1.03  # each idle look waits this much longer than the one before: about a thirtieth of the time that nothing came
# Looks may be long, where much was deleted and is not yet cleared away: the rest after two such is so many times as long, within
# what nobody notices who waits for a change.
_LONG_S, _REST, _LONGEST_REST_S = 0.003, 4, 0.03
_LONGER = 1.25  # looks that take ever longer pass over more and more that somebody has written and will commit


class PollWaker:
    """Asks `pending` until it says yes; the pause grows from the shortest to the longest while nothing comes, or with what looking
    takes.

    Where asking costs as much as looking does, `pending` is None and each pause ends the wait; there is none after something came.
    """

    def __init__(
        self,
        pending: Callable[[], bool] | None,
        close: Callable[[], None],
        stop: Stoppable,
        poll_s: tuple[float, float],
    ) -> None:
        self._pending = pending
        self._close = close
        self._stop = stop
        self._shortest, self._longest = poll_s
        self._pause = self._shortest
        self._woken = math.inf
        self._looked_s = self._known_s = 0.0

    def wait(self, timeout_s: float) -> bool:
        """See Waker."""
        begun = time.monotonic()
        until = begun + timeout_s
        before_s, self._looked_s = self._looked_s, begun - self._woken if self._pending is None and self._pause else 0.0
        looked_s = min(before_s, self._looked_s)  # a single one may have met a slow disk
        rest_s = min(_REST * looked_s, _LONGEST_REST_S, self._longest) if looked_s > _LONG_S else 0.0
        if not rest_s:
            self._known_s = 0.0
        elif looked_s > _LONGER * self._known_s:
            self._known_s, self._pause = looked_s, min(self._pause, rest_s)
        while self._pending is None or not self._pending():
            left = until - time.monotonic()
            if left <= 0 or self._stop.wait(min(max(self._pause, rest_s), left)):
                return False
            self._pause = min(max(self._pause * _RELAX, self._shortest), self._longest)
            if self._pending is None:
                break
        self._woken = time.monotonic()
        return True

    def found(self, again_s: float) -> None:
        """See Waker."""
        del again_s
        self._pause = 0.0 if self._pending is None else self._shortest

    def close(self) -> None:
        """See Waker."""
        self._close()
