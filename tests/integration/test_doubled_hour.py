"""The hour that comes twice in a year: which of the two it is must arrive, though both look alike to the writer (TRAPS 30)."""

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from deploy.servers import PrivateMariaDB
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, make_cluster
from tests.pipeline import Pipeline

SUMMER, WINTER = 1729989000, 1729992600  # 2024-10-27, 02:30 in Berlin, and 02:30 again
ZONE = "Some/Berlin"
ZONES = (
    "INSERT INTO mysql.time_zone (time_zone_id, use_leap_seconds) VALUES (9001, 'N')",
    f"INSERT INTO mysql.time_zone_name VALUES ('{ZONE}', 9001)",
    "INSERT INTO mysql.time_zone_transition_type VALUES (9001, 0, 3600, 0, 'CET'), (9001, 1, 7200, 1, 'CEST')",
    "INSERT INTO mysql.time_zone_transition VALUES (9001, 1711846800, 1), (9001, 1729990800, 0)",
)
KINDS = {  # column type, a moment, the moment shown, what sets a zone
    "postgresql": (
        "timestamptz",
        "to_timestamp({})",
        "extract(epoch FROM {})",
        {"UTC": "SET timezone = 'UTC'", "Berlin": "SET timezone = 'Europe/Berlin'"},
    ),
    "mariadb": (
        "TIMESTAMP",
        "FROM_UNIXTIME({})",
        "UNIX_TIMESTAMP({})",
        {"UTC": "SET time_zone = '+00:00'", "Berlin": f"SET time_zone = '{ZONE}'"},
    ),
}


@pytest.fixture
def pipeline(tmp_path: Path, database_kind: str, new_database: NewDatabase, request: pytest.FixtureRequest) -> Pipeline:
    if database_kind == "mariadb":
        server: PrivateMariaDB = request.getfixturevalue("mariadb")
        with create_engine(server.admin_url, poolclass=NullPool).begin() as connection:
            if not connection.execute(text("SELECT 1 FROM mysql.time_zone_name WHERE name = :n"), {"n": ZONE}).first():
                for statement in ZONES:
                    connection.execute(text(statement))
    kind = KINDS[database_kind][0]
    schema = (
        f"CREATE TABLE h (id INT PRIMARY KEY, n INT, at {kind} NULL, other {kind} NULL)",
        f"CREATE TABLE k (at {kind} NOT NULL PRIMARY KEY, n INT)",
    )
    cluster = make_cluster(
        tmp_path / "c", database_kind, NO_BROKER, new_database, schema=schema, tables="h\nk\n", nodes=("st1", "st2")
    )
    return Pipeline(cluster)


@pytest.mark.parametrize("database_kind", list(KINDS))
def test_both_hours_arrive_each_as_itself(pipeline: Pipeline, database_kind: str) -> None:
    """Written beside, moved from one to the other (which its writer cannot see), as keys, and as keys that become the other."""
    _, made, shown, zones = KINDS[database_kind]
    summer, winter = made.format(SUMMER), made.format(WINTER)

    def write(*statements: str, zone: str = "Berlin") -> None:
        pipeline.primary.execute(zones[zone], *statements)
        pipeline.move()
        assert pipeline.wrong() == []

    def moments(table: str) -> list[tuple[int, ...]]:
        rows = pipeline.secondary.rows(f"SELECT n, {shown.format('at')} FROM {table} ORDER BY n")
        return [tuple(map(int, row)) for row in rows]

    # MariaDB takes the first of the two from whoever writes in a zone that has both.
    write(f"INSERT INTO h VALUES (1, 1, {summer}, {winter}), (2, 2, {winter}, {summer})", zone="UTC")
    write(f"INSERT INTO k VALUES ({summer}, 1)", f"INSERT INTO k VALUES ({winter}, 2)", zone="UTC")
    write("UPDATE h SET n = n + 2", "UPDATE k SET n = n + 2")
    assert moments("h") == moments("k") == [(3, SUMMER), (4, WINTER)]
    write("INSERT INTO h SELECT id + 2, n + 2, other, at FROM h", "UPDATE h SET at = other WHERE id < 3")
    assert moments("h") == [(3, WINTER), (4, SUMMER), (5, WINTER), (6, SUMMER)]
    write("DELETE FROM k WHERE n = 3", "UPDATE k SET at = (SELECT at FROM h WHERE id = 2) WHERE n = 4")
    assert moments("k") == [(4, SUMMER)]
    pipeline.close()
