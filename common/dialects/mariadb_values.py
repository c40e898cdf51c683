"""How a value of MariaDB becomes exact text, and text the value again (TRAPS 30)."""

import re

from common.schema import Column

BINARY = ("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "geometry", "point", "linestring", "polygon",
           "multipoint", "multilinestring", "multipolygon", "geometrycollection")  # fmt: skip
INTEGER = ("tinyint", "smallint", "mediumint", "int", "bigint")
TEXT = ("char", "varchar", "tinytext", "text", "mediumtext", "longtext", "enum", "set")
_ROOM = {
    f"{size}{kind}": room
    for size, room in (("tiny", 255), ("", 65_535), ("medium", 16_777_215))
    for kind in ("text", "blob")
}
_SCALE = re.compile(r"^decimal\([0-9]+,([0-9]+)\)")
_CHARSET = re.compile(r" CHARACTER SET (\w+)")
UNTYPED = "LONGTEXT CHARACTER SET utf8mb4"  # what JSON_TABLE makes of any value's text
_UTF8 = re.compile(r" CHARACTER SET utf8mb4 COLLATE \w+$")


def quote(name: str) -> str:
    """An identifier, quoted."""
    return "`" + name.replace("`", "``") + "`"


def literal(value: str) -> str:
    """A text as it stands in SQL."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def type_of(column: Column) -> str:
    """The name of its type alone."""
    return column.type.split("(")[0].split(" ")[0].lower()


def text_of(column: Column, reference: str) -> str:
    """The column's exact text, independent of the writer's session (DESIGN §4, TRAPS 30)."""
    base = type_of(column)
    if base in BINARY:
        return f"HEX({reference})"
    if base == "timestamp":
        return f"CAST(IF({reference} = 0, 0, UNIX_TIMESTAMP({reference})) AS CHAR)"  # of zero it is NULL in a trigger
    if base == "bit":
        return f"CAST({reference} + 0 AS CHAR)"
    if base == "float":
        return f"CAST(CAST({reference} AS DOUBLE) AS CHAR)"
    if base in TEXT:  # JSON_ARRAY would embed one that json_valid checks, as JSON: null for 'null'
        return f"CONCAT(CONVERT({reference} USING utf8mb4))"
    return f"CAST({reference} AS CHAR)"


def is_utf8(column: Column) -> bool:
    """Whether a column of texts holds them as the session reads them."""
    return _UTF8.search(column.type) is not None


def text_in_trigger(column: Column, reference: str) -> str:
    """As `text_of`, of a value that has the column's own type: quicker for the most frequent ones."""
    if type_of(column) in INTEGER or (type_of(column) in TEXT and is_utf8(column)):
        return f"CONCAT({reference})"
    return text_of(column, reference)


def from_text(column: Column, value: str) -> str:
    """The value again; what `text_of` made of it is the SQL given."""
    base = type_of(column)
    if base in BINARY:
        # Without the conversion, in an UPDATE that joins JSON_TABLE, it is NULL or "too long" for some values (MariaDB 10.11).
        return f"UNHEX(CONVERT({value} USING ascii))"
    if base == "timestamp":
        seconds = f"CAST({value} AS DECIMAL(20,6))"
        return f"CAST(IF({seconds} = 0, '0000-00-00 00:00:00', FROM_UNIXTIME({seconds})) AS DATETIME(6))"
    if base == "bit":
        return f"CAST({value} AS UNSIGNED)"
    return value


def unclipped(column: Column, typed: str, text: str) -> str | None:
    """SQL for whether a value that JSON_TABLE gave the column's own type is the one that its text says: it clips what is too large or
    too long, without an error. None for types of which it is not known."""
    base = type_of(column)
    if base in INTEGER or base in {"decimal", "year"}:
        scale = _SCALE.search(column.type)
        return f"{typed} <=> CAST({text} AS DECIMAL(65,{scale[1] if scale else 0}))"
    if base == "char":
        return f"BINARY {text_of(column, typed)} <=> BINARY TRIM(TRAILING ' ' FROM {text})"
    return f"BINARY {text_of(column, typed)} <=> BINARY {text}" if base in TEXT else None


def fits(column: Column, value: str) -> str | None:
    """SQL for whether a long text, in a column of JSON_TABLE, has room in its own column; None where it has. MariaDB (10.11) cuts it
    without an error where it copies it from a temporary table."""
    base = type_of(column)
    if base not in _ROOM:
        return None
    charset = _CHARSET.search(column.type)
    length = f"LENGTH({value}) / 2" if charset is None else f"LENGTH(CONVERT({value} USING {charset[1]}))"
    return f"COALESCE({length}, 0) <= {_ROOM[base]}"


def is_plain(column: Column) -> bool:
    """Whether the column can be compared with a literal and mean what it means compared with a column of its own type."""
    return type_of(column) in INTEGER or type_of(column) in {"char", "varchar"}


def is_typed(column: Column) -> bool:
    """Whether JSON_TABLE can give its values the column's own type, for comparisons."""
    return type_of(column) not in {*BINARY, "timestamp", "bit", "enum", "set", "float", "double", "uuid", "inet6", "inet4"}
