"""The fingerprint of a table changes with what capture depends on, and not with the version of the program (TRAPS 6)."""

from dataclasses import replace

import pytest

from common.schema import Column, Table

TABLE = Table(
    "account",
    (
        Column("id", "bigint"),
        Column("code", "varchar(40)"),
        Column("name", "text"),
        Column("size", "bigint", generated=True),
    ),
    key=("id", "code"),
)
# As a version wrote them that knew of no collations; what it installed is still in order.
KNOWN = "6468ad4725b5388911ffd9f252304247f21462601e89c797643beee914fa2d62"
KNOWN_FOLLOWED = "70f74b6b4bb2157ff3d4fa29a9674f5e09e05fb86993ca39615b7f27431ad55b"


def with_collation(collation: str) -> Table:
    return replace(TABLE, columns=tuple(replace(one, collation=collation) for one in TABLE.columns))


def test_without_collations_it_is_what_it_always_was() -> None:
    """TRAPS 6: an upgrade alone asks for no full synchronization."""
    assert TABLE.fingerprint() == KNOWN
    assert replace(TABLE, followed=True).fingerprint() == KNOWN_FOLLOWED
    assert with_collation("").fingerprint() == KNOWN


def test_each_collation_has_its_own() -> None:
    """TRAPS 6: what is equal in a key changes with it."""
    assert len({KNOWN, *(with_collation(one).fingerprint() for one in ("C", "de_DE", "NOCASE"))}) == 4


@pytest.mark.parametrize(
    "change",
    [{"name": "accounts"}, {"key": ("id",)}, {"columns": TABLE.columns[:3]}, {"followed": True}],
    ids=["name", "key", "columns", "followed"],
)
def test_what_capture_depends_on_changes_it(change: dict[str, object]) -> None:
    assert replace(TABLE, **change).fingerprint() != KNOWN  # type: ignore[arg-type]
