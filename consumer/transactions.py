"""Change sets into the database: in as few transactions as can be, each with the position (TRAPS 7)."""

from collections.abc import Callable
from typing import Protocol

import structlog
from sqlalchemy.engine import Connection

from common import nodestate
from common.database import Database
from common.dialects.script import Script
from common.errors import LeftBehind, NotApplicable
from common.live_lists import LiveLists
from consumer import quarantine
from consumer.replay import References, Replayer, Unit


class Move(Protocol):
    """Moves the position past so many units, in the transaction of `script`; to be told once that has committed."""

    def __call__(self, script: Script, count: int, replays_by: int) -> Callable[[], None]:
        """`replays_by`: the `install` by whose lists they are replayed."""


class Transactions:
    """One thread owns it. What fails by its own fault goes into the quarantine, with the position."""

    def __init__(self, database: Database, lists: LiveLists, statement_bytes: int, move: Move) -> None:
        self._database = database
        self._lists = lists
        self._statement_bytes = statement_bytes
        self._move = move
        self._replayer: tuple[int, Replayer] | None = None
        self._replays_by = 0
        self._quarantined = 0
        self._log = structlog.get_logger("applier")

    @property
    def quarantined(self) -> int:
        """How many changes stand in the quarantine."""
        return self._quarantined

    def count_quarantined(self, connection: Connection, failed_now: int = 0) -> None:
        """Look how many they are; `failed_now`: so many are new."""
        self._quarantined = nodestate.quarantined(connection)
        connection.rollback()
        if failed_now:
            self._log.warning("changes_quarantined", now=failed_now, all=self._quarantined, see="stsync quarantine list")

    def replayer(self) -> Replayer:
        """The one for the lists as they are now."""
        generation = self._lists.generation
        if self._replayer is None or self._replayer[0] != generation:
            present = self._lists.present
            self._replayer = (generation, Replayer(self._database.dialect, present.tables, self._statement_bytes))
            self._replays_by = present.installed_ms
        return self._replayer[1]

    def apply(self, connection: Connection, units: list[Unit]) -> None:
        """All of them in one transaction; where that does not go, each in one of its own. Raises Unavailable and MessageRefused."""
        if self._at_once(connection, units) or (len(units) > 1 and self._together(connection, units)):
            return
        for unit in units:
            self._alone(connection, unit)

    def _at_once(self, connection: Connection, units: list[Unit]) -> bool:
        """The quick way, in as few round trips as there are; False, with nothing done, where that does not go."""
        if self._quarantined:
            return False
        try:
            with self._database.guard():
                script = self.replayer().at_once(connection, units)
                if script is None:
                    return False
                taken = self._move(script, len(units), self._replays_by)
                script.commit()
        except NotApplicable:
            connection.rollback()
            return False
        taken()
        return True

    def _together(self, connection: Connection, units: list[Unit]) -> bool:
        """False, with nothing done, when anything failed: each then gets its own transaction, so that a later change set finds in
        the quarantine what an earlier one left there."""
        try:
            return self._commit(connection, units, only_whole=True)
        except NotApplicable:
            connection.rollback()
            return False

    def _alone(self, connection: Connection, unit: Unit) -> None:
        references, deferred = References.WATCHED, True
        while True:
            try:
                self._commit(connection, [unit], deferred=deferred, references=references)
            except LeftBehind:
                connection.rollback()
                references = References(references.value + 1)
            except NotApplicable as exc:  # a constraint that is checked at the commit only
                connection.rollback()
                if not deferred:
                    self._commit(connection, [unit], refused=str(exc))
                    return
                deferred = False
            else:
                self._database.dialect.references(connection, enforced=True)
                return

    def _commit(
        self,
        connection: Connection,
        units: list[Unit],
        *,
        refused: str | None = None,
        only_whole: bool = False,
        deferred: bool = True,
        references: References = References.WATCHED,
    ) -> bool:
        """Apply these, with the position, in one transaction (TRAPS 7).

        `refused`: quarantine them as a whole instead. `only_whole`: roll back and say False when anything failed. `deferred`,
        `references`: see Replayer.apply.
        """
        replayer = self.replayer()
        with self._database.guard():
            if refused:
                failed = quarantine.whole(units, refused)
            else:
                failed = replayer.apply(connection, units, deferred=deferred, references=references)
            if failed and only_whole:
                connection.rollback()
                return False
            fresh = failed
            if self._quarantined:
                fresh = quarantine.overtaken(connection, units, failed, replayer)
            quarantine.add(connection, replayer, fresh)
            if self._quarantined or failed:
                quarantine.hold(connection, (frame for unit in units for frame in unit.frames()), replayer.listed)
            script = Script(connection)
            taken = self._move(script, len(units), self._replays_by)
            script.commit()
        taken()
        if failed or self._quarantined:
            self.count_quarantined(connection, failed_now=len(fresh))
        return True
