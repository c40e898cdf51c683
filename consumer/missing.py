"""When the primary is asked for what this node lacks (TRAPS 9): after a moment, for it may be on its way; and again."""

import time
from collections.abc import Callable
from typing import Final

import structlog

CATCH_UP_BATCHES: Final = 500
_GRACE_S: Final = 0.3


class Missing:
    """One thread owns it. `ask(first, limit)` sends a catch-up request, False: it could not be sent now; `retry_s`: the patience."""

    def __init__(self, ask: Callable[[int, int], bool], retry_s: float) -> None:
        self._ask = ask
        self._retry_s = retry_s
        self._asked = (0, 0, 0.0)
        self._unanswered: float | None = None
        self._log = structlog.get_logger("applier")
        self._progress = time.monotonic()
        self.asked_up_to = 0  # up to here something may come more than once

    @property
    def unanswered_s(self) -> float | None:
        """For how long it has been asked for in vain; None: nothing is asked for."""
        return None if self._unanswered is None else time.monotonic() - self._unanswered

    @property
    def progress(self) -> float:
        """When this node last got further, by the monotonic clock."""
        return self._progress

    def applied(self) -> None:
        """It is further now."""
        self._progress = time.monotonic()

    def over(self) -> None:
        """What was asked for has come, or is not needed any more."""
        self._unanswered = None

    def came(self) -> None:
        """What is due next is there."""
        self._progress, self._unanswered = time.monotonic(), None

    def look(self, first: int, head: int, *, waiting: bool) -> None:
        """`first`: what this node lacks from; `head`: what the primary is known to have; `waiting`: what comes later is here."""
        if head < first and not waiting:
            self._unanswered = None
            return
        now = time.monotonic()
        asked_first, asked_last, asked_at = self._asked
        if asked_first <= first <= asked_last:
            patience, since = self._retry_s, max(self._progress, asked_at)
        else:
            patience, since = (0.0 if waiting else _GRACE_S), self._progress
        if now - since >= patience and self._ask(first, CATCH_UP_BATCHES):
            self._asked = (first, first + CATCH_UP_BATCHES - 1, now)
            self._unanswered = now if self._unanswered is None else self._unanswered
            # The answer may reach beyond the head that is known here.
            self.asked_up_to = max(self.asked_up_to, self._asked[1])
            log = self._log.debug if first == asked_first else self._log.info  # once more is no news
            log("catch_up_asked", first=first, head=head)
