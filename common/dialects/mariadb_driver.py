"""PyMySQL's connection, and what it lacks: statements that the server keeps prepared (of the client/server protocol: COM_STMT_PREPARE,
COM_STMT_EXECUTE, COM_STMT_CLOSE). MariaDB's parser takes longer for a row of literals than InnoDB does to insert it."""

import ssl
import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from pymysql.connections import Connection as Driver
from pymysql.constants.COMMAND import COM_STMT_CLOSE, COM_STMT_EXECUTE, COM_STMT_PREPARE
from pymysql.err import OperationalError
from pymysql.protocol import OKPacketWrapper

_KEPT: Final = 32
_TOO_MANY: Final = 1461  # max_prepared_stmt_count
_TEXT: Final = b"\xfd\x00"  # MYSQL_TYPE_VAR_STRING, in the connection's character set
_BYTES: Final = b"\xfc\x00"  # MYSQL_TYPE_BLOB
_INTEGER: Final = b"\x08\x00"  # MYSQL_TYPE_LONGLONG


class _Lengths(dict[int, bytes]):
    """A text's length as the protocol has it (a length-encoded integer)."""

    def __missing__(self, length: int) -> bytes:
        if length < 1 << 16:
            return b"\xfc" + struct.pack("<H", length)
        return b"\xfe" + struct.pack("<Q", length)


_LENGTHS: Final = _Lengths((length, bytes([length])) for length in range(251))


@cache
def _unchecked() -> ssl.SSLContext:
    """TLS with whatever certificate the server has, as the driver does it where no option asks for more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Connection(Driver):
    """A connection that knows when a compound statement has committed already, and spares the round trip; and that keeps statements
    prepared."""

    committed = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._prepared: OrderedDict[str, int] = OrderedDict()
        super().__init__(*arguments, **named)

    def _create_ssl_ctx(self, sslp: ssl.SSLContext | Mapping[str, Any]) -> ssl.SSLContext:
        """The driver reads all certificates of the system for each connection, nine tenths of its time, also to check none."""
        found: ssl.SSLContext = super()._create_ssl_ctx(sslp) if sslp else _unchecked()  # type: ignore[misc]
        return found

    def commit(self) -> None:
        """Commit, unless that is done."""
        if not self.committed:
            super().commit()

    def keeps(self, statement: str) -> bool:
        """Whether it is prepared."""
        return statement in self._prepared

    def prepare(self, statement: str) -> int | None:
        """The number under which the server keeps a statement that has a `?` for each parameter, and no result; None where it keeps no
        more of them. Raises the driver's errors."""
        number = self._prepared.get(statement) or self._prepare(statement)
        if number is not None:
            self._prepared.move_to_end(statement)
        return number

    def execute_prepared(self, call: bytes) -> int:
        """Run what `execution` made; the number of rows that it wrote. Raises the driver's errors."""
        self._send(COM_STMT_EXECUTE, call)
        return int(OKPacketWrapper(self._receive()).affected_rows)

    def _send(self, command: int, payload: bytes) -> None:
        self._execute_command(command, payload)  # type: ignore[attr-defined]

    def _receive(self) -> Any:
        return self._read_packet()  # type: ignore[no-untyped-call]

    def _prepare(self, statement: str) -> int | None:
        if len(self._prepared) == _KEPT:
            _, oldest = self._prepared.popitem(last=False)
            self._send(COM_STMT_CLOSE, struct.pack("<I", oldest))  # to which there is no answer
        self._send(COM_STMT_PREPARE, statement.encode())
        try:
            answer = self._receive().get_all_data()
        except OperationalError as exc:
            if exc.args[0] == _TOO_MANY:
                return None
            raise
        number, _, parameters = struct.unpack_from("<IHH", answer, 1)
        for _ in range(parameters + 1):  # what it knows of each, and the end of that
            self._receive()
        self._prepared[statement] = number
        return int(number)


def execution(number: int, values: Sequence[str | None]) -> bytes:
    """What runs a prepared statement with these texts, in its order."""
    nulls = bytearray((len(values) + 7) // 8)
    given: Sequence[str | None] = values
    if None in values:
        for place, value in enumerate(values):
            if value is None:
                nulls[place >> 3] |= 1 << (place & 7)
        given = [value for value in values if value is not None]
    texts = [value.encode() for value in given if value is not None]
    parts = [b""] * (2 * len(texts))
    parts[::2] = [_LENGTHS[len(text)] for text in texts]
    parts[1::2] = texts
    return b"".join([struct.pack("<IBI", number, 0, 1), nulls, b"\x01", _TEXT * len(values), *parts])


def execution_of_any(number: int, values: Sequence[str | bytes | int | float]) -> bytes:
    """As `execution`, of texts, bytes and numbers."""
    kinds, parts = [], []
    for value in values:
        if isinstance(value, int):
            kinds.append(_INTEGER)
            parts.append(struct.pack("<q", value))
            continue
        kinds.append(_BYTES if isinstance(value, bytes) else _TEXT)
        data = value if isinstance(value, bytes) else str(value).encode()
        parts += [_LENGTHS[len(data)], data]
    nulls = bytes((len(values) + 7) // 8)
    return b"".join([struct.pack("<IBI", number, 0, 1), nulls, b"\x01", *kinds, *parts])
