"""What ends a hot transaction in MariaDB, as one compound statement: one round trip instead of one for each statement and one more."""

from typing import Any

from pymysql.connections import Connection as Driver
from pymysql.err import OperationalError

from common.dialects.script import Collected, Promised
from common.errors import NotApplicable


class Committing(Driver):
    """A connection that knows when a compound statement has committed already, and spares the round trip."""

    committed = False

    def commit(self) -> None:
        """Commit, unless that is done."""
        if self.committed:
            self.committed = False
            return
        super().commit()


class CompoundScript(Collected):
    """One statement that runs all, looks after each at what it promised, and commits (MariaDB, BEGIN NOT ATOMIC)."""

    def commit(self) -> None:
        """See Script."""
        driver: Any = self.connection.connection.driver_connection
        parts = [_checked(self._cursor, one) for one in self.statements]
        try:
            self._cursor.execute(f"BEGIN NOT ATOMIC\n{''.join(parts)}COMMIT;\nEND")
        except OperationalError as exc:
            if exc.args[1:] == (_BROKEN,):
                raise NotApplicable(_BROKEN) from exc
            raise
        driver.committed = True
        super().commit()


def _checked(cursor: Any, one: Promised) -> str:
    statement = cursor.mogrify(one.operation, *one.parameters)
    if one.rows is None:
        return f"{statement};\n"
    return (
        f"{statement};\nIF ROW_COUNT() <> {one.rows} THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{_BROKEN}'; END IF;\n"
    )


_BROKEN = "a statement did not find the rows that it was to write"
