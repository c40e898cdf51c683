"""How this node differs from the primary, found by digests: first whole tables, then buckets of rows, then rows (DESIGN §8). Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import zstandard

from common.changes import SEPARATOR, Frame, Key, Kind, keys_of
from common.digests import Bucket
from common.session import KEYS_TOLD, Rows, TableCompared, TableShape, shown_key


def differing(own: Mapping[int, Bucket], first: int, width: int, digests: bytes) -> list[int]:
    """The buckets from `first` on whose digests here are not these."""
    nothing = bytes(width)
    found = []
    for place in range(len(digests) // width):
        here = own.get(first + place)
        if (nothing if here is None else here.digest) != digests[place * width : (place + 1) * width]:
            found.append(first + place)
    return found


def keyed(rows: str, count: int, shape: TableShape) -> list[Key]:
    """The keys of rows, or of keys as in a `delete` frame; raises MessageRefused (malformed)."""
    return keys_of(Frame(shape.name, Kind.DELETE, shape.names[: shape.key], count, rows, shape.key), shape.key)


@dataclass
class Part:
    """The rows of some buckets on the primary, as they are being told."""

    number: int
    table: int
    buckets: tuple[int, ...]
    keys: list[Key] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    digests: bytearray = field(default_factory=bytearray)

    def add(self, said: Rows, shape: TableShape) -> None:
        """Take in more of them; raises MessageRefused (malformed)."""
        if said.count:
            self.keys += keyed(said.keys, said.count, shape)
            self.texts += said.keys.split(SEPARATOR)
            self.digests += said.digests

    def digest_of(self, place: int) -> bytes:
        """That of a row."""
        width = len(self.digests) // len(self.keys)
        return bytes(self.digests[place * width : (place + 1) * width])


class Packed:
    """A lot of texts, kept small."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.count = len(texts)
        self._packed = zstandard.compress(SEPARATOR.join(texts).encode(errors="surrogatepass"), 1) if texts else b""

    def text(self) -> str:
        """All of them, joined as the rows of a frame."""
        return zstandard.decompress(self._packed).decode(errors="surrogatepass") if self._packed else ""

    def texts(self) -> list[str]:
        """Each by itself."""
        return self.text().split(SEPARATOR) if self.count else []


@dataclass(frozen=True)
class Found:
    """What a part's comparison found: places, in the part, of rows that are missing here or differ; keys of rows too many."""

    missing: list[int]
    different: list[int]
    extra: list[Packed]


def compare(part: Part, own: Iterable[Sequence[tuple[str, bytes]]], shape: TableShape) -> Found:
    """A part against this node's rows in its buckets, in portions, each with its key's JSON text and its digest; there may be many
    more of them than the part has."""
    there = {key: place for place, key in enumerate(part.keys)}
    different = []
    extra = []
    for portion in own:
        texts = [f"[{text}]" for text, _ in portion]
        many = []
        for key, text, (_, digest) in zip(keyed(SEPARATOR.join(texts), len(texts), shape), texts, portion, strict=True):
            place = there.pop(key, None)
            if place is None:
                many.append(text)
            elif digest != part.digest_of(place):
                different.append(place)
        if many:
            extra.append(Packed(many))
    return Found(sorted(there.values()), sorted(different), extra)


@dataclass
class Tally:
    """How a table differs, as it is found: numbers of rows, and some of their keys."""

    missing: int = 0
    extra: int = 0
    different: int = 0
    keys: dict[str, list[str]] = field(default_factory=lambda: {"missing": [], "extra": [], "different": []})

    def add(self, part: Part, found: Found) -> None:
        """What one part's comparison found."""
        self.missing += len(found.missing)
        self.extra += sum(some.count for some in found.extra)
        self.different += len(found.different)
        self._tell("missing", (part.texts[place] for place in found.missing))
        self._tell("different", (part.texts[place] for place in found.different))
        for some in found.extra:
            if len(self.keys["extra"]) < KEYS_TOLD:
                self._tell("extra", some.texts())

    def _tell(self, sort: str, texts: Iterable[str]) -> None:
        told = self.keys[sort]
        for text in texts:
            if len(told) >= KEYS_TOLD:
                return
            told.append(shown_key(text))

    def compared(self, table: str) -> TableCompared:
        """As it is reported."""
        keys = {f"{sort}_keys": tuple(texts) for sort, texts in self.keys.items()}
        return TableCompared(table, self.missing, self.extra, self.different, **keys)

    @property
    def rows(self) -> int:
        """All of them."""
        return self.missing + self.extra + self.different
