"""The statements that end a hot transaction, run with its commit: in as few round trips as the database allows."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any, Final, NamedTuple

from sqlalchemy.engine import Connection

from common.dialects.base import parameter, raw_cursor

SMALL: Final = 64 << 10  # bytes of changes: more of them cost so much that a round trip does not show


class Script:
    """A cursor for statements of which none needs what another one found.

    Here each is run at once. Where it pays, dialects collect them instead; then `rowcount` is what was promised, and a statement that
    wrote another number of rows has `commit` fail, as all does that a database would have said earlier. `direct` is a cursor that
    runs what it is given, for questions in between.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.mark = parameter(connection)

    @cached_property
    def direct(self) -> Any:
        """See the class."""
        return raw_cursor(self.connection)

    @property
    def rowcount(self) -> int:
        """How many rows the last statement wrote."""
        return int(self.direct.rowcount)

    def promise(self, rows: int | None) -> None:
        """The next statement has to write so many rows (None: any number)."""

    def execute(self, operation: str, *parameters: Any) -> None:
        """Run a statement."""
        self.direct.execute(operation, *parameters)

    def executemany(self, operation: str, rows: Iterable[Any]) -> None:
        """Run a statement for each of these."""
        self.direct.executemany(operation, rows)

    def commit(self) -> None:
        """End the transaction. Raises the driver's errors and NotApplicable, and then the caller rolls back."""
        if "direct" in self.__dict__:
            self.direct.close()
        self.connection.commit()


class Promised(NamedTuple):
    """A statement, its parameters if it has any, and how many rows it has to write."""

    operation: str
    parameters: tuple[Any, ...]
    rows: int | None


class Collected(Script):
    """Collects; those derived from it run what was collected, and commit."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.statements: list[Promised] = []
        self._promised: int | None = None

    @property
    def rowcount(self) -> int:
        """As promised."""
        return self._promised or 0

    def promise(self, rows: int | None) -> None:
        """See Script."""
        self._promised = rows

    def execute(self, operation: str, *parameters: Any) -> None:
        """See Script."""
        self.statements.append(Promised(operation, parameters, self._promised))

    def executemany(self, operation: str, rows: Iterable[Any]) -> None:
        """See Script."""
        for values in rows:
            self.execute(operation, values)
