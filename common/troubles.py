"""What keeps a running service from getting further, kept in its database for `status` and told in reports (DOMAIN: people who see
nothing go on and are not told why)."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.engine import Connection

from common import nodestate
from common.bookkeeping import troubles
from common.database import Database
from common.linkstate import LinkState, StateName

_STANDS: Final[tuple[StateName, ...]] = ("blocked", "down", "locked", "refused")
_OVER_AFTER_S = 2.0  # the others: what fails at once whenever it is tried again was over for no moment
# These say themselves when they get on, for they may wait long, for somebody's lock, before they fail again.
_SAY_SO: Final = frozenset({"relay", "sender", "control", "applier", "lists", "troubles"})
_LONGEST = 2000


@dataclass(frozen=True)
class Trouble:
    """A sentence for a person, and since when it holds, in ms since 1970; `tried` is when, by the monotonic clock, what had failed
    began anew, None while it rests."""

    reason: str
    since_ms: int
    tried: float | None = None


class Troubles:
    """One a service; every thread may call. A trouble has the name of the thread, or of the link, that has it."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._guard = threading.Lock()
        self._found: dict[str, Trouble] = {}
        self._kept: dict[str, Trouble] | None = None

    def failed(self, name: str, reason: str) -> None:
        """It could not be done, and will be tried again."""
        with self._guard:
            before = self._found.get(name)
            self._found[name] = Trouble(reason[:_LONGEST], before.since_ms if before else nodestate.now_ms())

    def tried(self, name: str) -> None:
        """It is tried again. Of those that do not say themselves that it is `over`, it is when they do not fail within two seconds."""
        with self._guard:
            before = self._found.get(name)
            if before is not None and name not in _SAY_SO:
                self._found[name] = replace(before, tried=self._clock())

    def over(self, name: str) -> None:
        """It goes on. Costs next to nothing where there was no trouble."""
        if name in self._found:
            with self._guard:
                self._found.pop(name, None)

    def link(self, name: str, state: LinkState) -> None:
        """A link to the broker is in another state."""
        if state.name in _STANDS:
            self.failed(name, state.reason or str(state.name))
        else:
            self.over(name)

    def of(self, *names: str) -> str | None:
        """What the first of these that is in trouble has; None where all goes well."""
        return first(self.present(), *names)

    def keep(self) -> None:
        """Write down what has changed; raises Unavailable."""
        told = {name: replace(one, tried=None) for name, one in self.present().items() if name != "troubles"}
        if told == self._kept:
            return
        with self._database.connect() as connection:
            connection.execute(delete(troubles))
            for name, one in told.items():
                connection.execute(troubles.insert().values(name=name, reason=one.reason, since_ms=one.since_ms))
            connection.commit()
        self._kept = told

    def present(self) -> dict[str, Trouble]:
        """Those that last, by name."""
        now = self._clock()
        with self._guard:
            for name, one in list(self._found.items()):
                if one.tried is not None and now - one.tried > _OVER_AFTER_S:
                    del self._found[name]
            return dict(self._found)


def read(connection: Connection) -> dict[str, Trouble]:
    """What the service last wrote down, by name; it says nothing of one that does not run."""
    rows = connection.execute(select(troubles.c.name, troubles.c.reason, troubles.c.since_ms).order_by(troubles.c.name))
    return {name: Trouble(reason, since_ms) for name, reason, since_ms in rows}


def first(found: dict[str, Trouble], *names: str) -> str | None:
    """What the first of these that is in trouble has; None where all goes well."""
    return next((found[name].reason for name in names if name in found), None)


def sentences(found: dict[str, Trouble]) -> list[str]:
    """For a person: each reason once."""
    since: dict[str, int] = {}
    for one in found.values():
        since[one.reason] = min(one.since_ms, since.get(one.reason, one.since_ms))
    return [f"{reason} (since {nodestate.iso(at)}; tried again and again)" for reason, at in since.items()]
