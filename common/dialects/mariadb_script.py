"""What ends a transaction in MariaDB: a hot one as one compound statement, so that there is one round trip instead of one for each
statement and one more; a large one without literals of what is large."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from pymysql.err import OperationalError

from common.dialects.mariadb_driver import Connection as Driver
from common.dialects.mariadb_driver import execution_of_any
from common.dialects.script import Collected, Script
from common.errors import NotApplicable

_SHORT: Final = 1 << 10  # bytes that are no burden as a literal
LONGEST = 256 << 10  # characters of a compound statement: far below any max_allowed_packet in use
_BROKEN = "a statement did not find the rows that it was to write"


class CompoundScript(Collected):
    """One statement that runs all, looks after each at what it promised, and commits (MariaDB, BEGIN NOT ATOMIC)."""

    def commit(self) -> None:
        """See Script."""
        texts = [self.direct.mogrify(one.operation, *one.parameters) for one in self.statements]
        if sum(map(len, texts)) > LONGEST:
            self._one_by_one(texts)
            return
        driver: Any = self.connection.connection.driver_connection
        parts = [_checked(text, one.rows) for text, one in zip(texts, self.statements, strict=True)]
        try:
            self.direct.execute(f"BEGIN NOT ATOMIC\n{''.join(parts)}COMMIT;\nEND")
        except OperationalError as exc:
            if exc.args[1:] == (_BROKEN,):
                raise NotApplicable(_BROKEN) from exc
            raise
        driver.committed = True
        try:
            super().commit()
        finally:
            driver.committed = False

    def _one_by_one(self, texts: list[str]) -> None:
        for text, one in zip(texts, self.statements, strict=True):
            self.direct.execute(text)
            if one.rows not in (None, self.direct.rowcount):
                raise NotApplicable(_BROKEN)
        super().commit()


def _checked(text: str, rows: int | None) -> str:
    if rows is None:
        return f"{text};\n"
    return f"{text};\nIF ROW_COUNT() <> {rows} THEN SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{_BROKEN}'; END IF;\n"


class PreparedScript(Script):
    """Runs each at once, and what takes many bytes as a prepared statement: as literals they are escaped here, and parsed there,
    which takes the server three times as long as it takes to store them."""

    _written: int | None = None

    @property
    def rowcount(self) -> int:
        """See Script."""
        return super().rowcount if self._written is None else self._written

    def execute(self, operation: str, *parameters: Any) -> None:
        """See Script."""
        self._written = self._prepared(operation, *parameters)
        if self._written is None:
            super().execute(operation, *parameters)

    def executemany(self, operation: str, rows: Iterable[Any]) -> None:
        """See Script."""
        for row in rows:
            self.execute(operation, row)

    def _prepared(self, operation: str, values: Sequence[Any] = ()) -> int | None:
        """How many rows it wrote; None where it is to go the other way."""
        if not any(isinstance(value, bytes) and len(value) > _SHORT for value in values):
            return None
        driver: Driver = self.direct.connection
        number = driver.prepare(operation.replace("%s", "?"))
        return None if number is None else driver.execute_prepared(execution_of_any(number, values))
