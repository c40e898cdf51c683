"""What ends a hot transaction in MariaDB, as one compound statement: one round trip instead of one for each statement and one more."""

from typing import Any

from pymysql.err import OperationalError

from common.dialects.script import Collected
from common.errors import NotApplicable

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
