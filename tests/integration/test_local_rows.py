"""A row filter holds on the secondary too: what the primary does to a key leaves a local row with that key alone (TRAPS 32)."""

from tests.pipeline import Pipeline

LOCAL = [("a", "x", "mine", 1)]
WHAT = {
    "delete": ["DELETE FROM param WHERE name = 'a'"],
    "delete of many": ["DELETE FROM param"],
    "update": ["UPDATE param SET val = 'theirs again' WHERE name = 'a'"],
    "key taken away": ["UPDATE param SET name = 'other' WHERE name = 'a'"],
    "key taken by another": [
        "DELETE FROM param WHERE name = 'a'",
        "UPDATE param SET name = 'a', node = 'x' WHERE name = 'b'",
    ],
    "leaves the filter": ["UPDATE param SET islocal = 1 WHERE name = 'a'"],
    "inserted anew": ["DELETE FROM param WHERE name = 'a'", "INSERT INTO param VALUES ('a', 'x', 'anew', 0)"],
}


def test_a_local_row_outlives_whatever_the_primary_does_to_its_key(pipeline: Pipeline) -> None:
    """TRAPS 32: a delete, an update, a key update; a change of another row in the same change set does arrive."""
    primary, secondary = pipeline.primary, pipeline.secondary
    for name, statements in WHAT.items():
        for node in (primary, secondary):
            node.execute("DELETE FROM param")
        pipeline.move()
        secondary.execute("DELETE FROM stsync_quarantine")
        primary.execute("INSERT INTO param VALUES ('a', 'x', 'theirs', 0), ('b', 'x', 'b', 0)")
        pipeline.move()
        secondary.execute("UPDATE param SET islocal = 1, val = 'mine' WHERE name = 'a'")
        primary.execute(*statements)
        primary.execute("INSERT INTO param VALUES ('c', 'x', 'c', 0)")
        pipeline.move()
        assert secondary.rows("SELECT name, node, val, islocal FROM param WHERE name = 'a'") == LOCAL, name
        assert secondary.rows("SELECT 1 FROM param WHERE name = 'c'"), name
