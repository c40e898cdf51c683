"""Bounds of what a signed message may say: a number or a text that no database takes must not stop who stores it. Pure."""

from typing import Annotated, Final

import msgspec

from common.changes import printable

MAX_SENTENCE: Final = 2000
NO_NUL: Final = r"^[^\x00]*$"
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Name = Annotated[str, msgspec.Meta(max_length=63, pattern=NO_NUL)]
Said = Annotated[str, msgspec.Meta(max_length=63)]  # compared with what it must be, and told escaped, but never stored
Hash = Annotated[bytes, msgspec.Meta(max_length=32)]
Sentence = Annotated[str, msgspec.Meta(max_length=MAX_SENTENCE, pattern=NO_NUL)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=1e15)]


def as_sentence(text: str) -> str:
    """A text for a person as a message can hold it."""
    return printable(text).replace("\0", "")[:MAX_SENTENCE]
