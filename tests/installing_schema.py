"""Tables of every kind of reference, listed and not, for installations of full synchronizations."""

import re

from tests.installing import Pair

WORD = {
    "sqlite": "VARCHAR(20) COLLATE NOCASE",
    "mariadb": "VARCHAR(20) COLLATE utf8mb4_general_ci",
    "postgresql": "VARCHAR(20) COLLATE folded",
}
FOLDED = "CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
PARENT = "BIGINT, FOREIGN KEY (grp_id) REFERENCES grp (id)"
SCHEMA = (
    "CREATE TABLE grp (id BIGINT PRIMARY KEY, code VARCHAR(20) NOT NULL UNIQUE, note VARCHAR(20), seen VARCHAR(20))",
    f"CREATE TABLE member (id BIGINT PRIMARY KEY, note VARCHAR(20), mine INT NOT NULL DEFAULT 0, grp_id {PARENT}"
    " ON DELETE CASCADE ON UPDATE CASCADE)",
    "CREATE TABLE badge (id BIGINT PRIMARY KEY, member_id BIGINT, FOREIGN KEY (member_id) REFERENCES member (id))",
    "CREATE TABLE hint (id BIGINT PRIMARY KEY, code VARCHAR(20), FOREIGN KEY (code) REFERENCES grp (code) ON DELETE SET NULL"
    " ON UPDATE CASCADE)",
    f"CREATE TABLE strict (id BIGINT PRIMARY KEY, grp_id {PARENT} ON DELETE RESTRICT)",
    "CREATE TABLE unit (id BIGINT PRIMARY KEY, name VARCHAR(20) NOT NULL UNIQUE, above BIGINT, FOREIGN KEY (above)"
    " REFERENCES unit (id))",
    "CREATE TABLE tree (id BIGINT PRIMARY KEY, above BIGINT, FOREIGN KEY (above) REFERENCES tree (id) ON DELETE CASCADE)",
    "CREATE TABLE pair (a VARCHAR(20), b BIGINT, val VARCHAR(20), PRIMARY KEY (a, b))",
    "CREATE TABLE piece (id BIGINT PRIMARY KEY, a VARCHAR(20), b BIGINT, FOREIGN KEY (a, b) REFERENCES pair (a, b) ON DELETE CASCADE)",
    f"CREATE TABLE u_cascade (id BIGINT PRIMARY KEY, grp_id {PARENT} ON DELETE CASCADE)",
    "CREATE TABLE u_below (up BIGINT, FOREIGN KEY (up) REFERENCES u_cascade (id) ON DELETE CASCADE)",
    f"CREATE TABLE u_null (id BIGINT PRIMARY KEY, grp_id {PARENT} ON DELETE SET NULL)",
    f"CREATE TABLE u_strict (id BIGINT PRIMARY KEY, grp_id {PARENT} ON DELETE RESTRICT)",
    f"CREATE TABLE u_stay (id BIGINT PRIMARY KEY, grp_id {PARENT})",
    "CREATE TABLE u_code (code VARCHAR(20), FOREIGN KEY (code) REFERENCES grp (code) ON DELETE CASCADE ON UPDATE CASCADE)",
    "CREATE TABLE u_unit (unit_id BIGINT, FOREIGN KEY (unit_id) REFERENCES unit (id))",
)
CIRCLE = {
    "sqlite": (
        "CREATE TABLE hen (id BIGINT PRIMARY KEY, egg_id BIGINT NOT NULL REFERENCES egg (id), name VARCHAR(20) UNIQUE)",
        "CREATE TABLE egg (id BIGINT PRIMARY KEY, hen_id BIGINT NOT NULL REFERENCES hen (id) ON DELETE CASCADE)",
    ),
    "mariadb": (
        "CREATE TABLE hen (id BIGINT PRIMARY KEY, egg_id BIGINT NOT NULL, name VARCHAR(20) UNIQUE)",
        "CREATE TABLE egg (id BIGINT PRIMARY KEY, hen_id BIGINT NOT NULL, FOREIGN KEY (hen_id) REFERENCES hen (id)"
        " ON DELETE CASCADE)",
        "ALTER TABLE hen ADD FOREIGN KEY (egg_id) REFERENCES egg (id)",
    ),
}
CIRCLE["postgresql"] = CIRCLE["mariadb"]
NAMES = (
    'member where="mine = 0"',
    "grp exclude=seen",
    "unit",
    "tree",
    "pair",
    "word_use",
    "word exclude=seen",
    "egg",
    "hen",
)
TABLES = "\n".join(("piece", "badge", "hint", "strict", *NAMES, ""))
ROWS = (
    "INSERT INTO grp VALUES (1, 'one', 'a', 's1'), (2, 'two', 'b', 's2'), (3, 'three', 'c', 's3'), (4, 'four', 'd', 's4')",
    "INSERT INTO member (id, grp_id, note) VALUES (10, 1, 'x'), (11, 1, 'y'), (20, 2, 'z'), (30, 3, 'w')",
    "INSERT INTO badge VALUES (1, 10), (2, 20)",
    "INSERT INTO hint VALUES (1, 'one'), (2, 'two'), (3, 'three')",
    "INSERT INTO strict VALUES (1, 1), (2, 2)",
    "INSERT INTO unit VALUES (1, 'root', NULL), (2, 'left', 1), (3, 'right', 1), (4, 'leaf', 2)",
    "INSERT INTO tree VALUES (1, NULL), (2, 1), (3, 2)",
    "INSERT INTO pair VALUES ('a', 1, 'x'), ('a', 2, 'y'), ('b', 1, 'z')",
    "INSERT INTO piece VALUES (1, 'a', 1), (2, 'a', 2), (3, 'b', 1)",
    "INSERT INTO word VALUES ('abc', 'x', 's'), ('def', 'y', 's')",
    "INSERT INTO word_use VALUES (1, 'abc'), (2, 'def')",
    "INSERT INTO hen VALUES (1, 1, 'h1'), (2, 2, 'h2')",
    "INSERT INTO egg VALUES (1, 1), (2, 2)",
)
LOCAL = (
    "INSERT INTO member (id, grp_id, note, mine) VALUES (70, 1, 'my', 1), (71, 2, 'my', 1)",
    "INSERT INTO u_cascade VALUES (1, 1), (2, 2)",
    "INSERT INTO u_below VALUES (1), (2)",
    "INSERT INTO u_null VALUES (1, 1), (2, 2)",
    "INSERT INTO u_code VALUES ('one'), ('two')",
    "INSERT INTO u_unit VALUES (4)",
)
EVERY = [re.split(r"[ (]", one)[2] for one in (*SCHEMA, *CIRCLE["sqlite"])] + ["word", "word_use"]
UNLISTED = ("member WHERE mine = 1", "u_cascade", "u_below", "u_null", "u_strict", "u_stay", "u_code", "u_unit")


def schema_for(kind: str) -> tuple[str, ...]:
    words = (
        f"CREATE TABLE word (name {WORD[kind]} PRIMARY KEY, val VARCHAR(20), seen VARCHAR(20))",
        f"CREATE TABLE word_use (id BIGINT PRIMARY KEY, name {WORD[kind]}, FOREIGN KEY (name) REFERENCES word (name)"
        " ON DELETE CASCADE)",
    )
    return (*([FOLDED] if kind == "postgresql" else []), *SCHEMA, *words, *CIRCLE[kind])


def local_rows(pair: Pair) -> dict[str, list[tuple[object, ...]]]:
    found = {name: sorted(pair.secondary.rows(f"SELECT * FROM {name}"), key=repr) for name in UNLISTED}
    return found | {"seen": sorted(pair.secondary.rows("SELECT id, seen FROM grp"))}
