"""MariaDB: strings of JSON go into statements as they came, where they mean the same there (TRAPS 30); nothing in them is SQL."""

import pytest
from sqlalchemy import text

from common.dialects.json_writer import JsonWriter
from tests.pipeline import Pipeline

TEXTS = {
    "quotes": "\"a\" 'b' `c`",
    "a backslash": "\\",
    "backslashes before everything": "".join(f"\\{letter}" for letter in "\\\"'/bfnrtu0Z%_N"),
    "what would be an escape": "\\u0041\\n\\\\u0041\\\\\\n",
    "white space": "\t \n \r \b \f \v",
    "control characters": "".join(map(chr, range(32))) + "\x7f",
    "the end of a row": '"],\n["x","y"',
    "the end of a row of SQL": '"),("9","z',
    "a statement": "\"); DROP TABLE unit; -- '); DROP TABLE unit; --",
    "comments": "/* -- # */ /*!50000 1 */",
    "placeholders": "%s %(a)s %% ? :b {c}",
    "what is nothing elsewhere": "null NULL \\N",
    "beyond ASCII": "äß€😀\u2028\u2029\ufeff\u0300",
    "nothing": "",
    "only spaces": "   ",
}


@pytest.fixture
def database_kind() -> str:
    return "mariadb"


@pytest.mark.parametrize(
    "others", [None, "plain", "\f"], ids=["alone", "with plain ones", "with ones that need another way"]
)
def test_every_text_arrives_to_the_byte(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, others: str | None) -> None:
    def other_way(*_: object) -> int:
        raise AssertionError("through JSON_TABLE")

    monkeypatch.setattr(JsonWriter, "insert", other_way)
    for what, value in TEXTS.items():
        rows = [{"i": 1, "n": value, "v": value}, {"i": 2, "n": "second", "v": None}]
        rows += [{"i": 3, "n": "third", "v": others}] if others else []
        pipeline.primary.execute("DELETE FROM account")
        pipeline.move()
        with pipeline.primary.engine.connect() as connection:
            for row in rows:
                connection.execute(text("INSERT INTO account VALUES (:i, :n, NULL, :v, NULL)"), row)
            connection.commit()
        pipeline.move()
        found = pipeline.secondary.rows("SELECT id, HEX(name), HEX(note) FROM account ORDER BY id")
        assert found == [(row["i"], _hex(row["n"]), _hex(row["v"])) for row in rows], what
    assert pipeline.wrong() == []


def _hex(value: object) -> str | None:
    return None if value is None else str(value).encode().hex().upper()
