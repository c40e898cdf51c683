"""Digests of tables, out of those of their buckets. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from common.session import TableDigest


@dataclass(frozen=True)
class Bucket:
    """Rows of a table whose keys have one hash: how many, and a digest over all of them, whatever their order: the XOR of theirs."""

    rows: int
    digest: bytes


def whole(buckets: Iterable[Bucket]) -> TableDigest:
    """A table's rows and the digest over them all: its buckets' joined as they are."""
    rows, digest = 0, b""
    for bucket in buckets:
        rows += bucket.rows
        digest = bucket.digest if not digest else _xor(digest, bucket.digest)
    return TableDigest(rows, digest)


def _xor(left: bytes, right: bytes) -> bytes:
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).to_bytes(len(left), "big")
