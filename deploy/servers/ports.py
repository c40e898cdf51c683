"""Free ports that stay ours: a server must come back on the same port after a crash."""

import random
import socket
from pathlib import Path

from deploy.servers.errors import ServerError

_LOWEST = 20_000
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_ATTEMPTS = 500
_dice = random.SystemRandom()


class Ports:
    """Ports on 127.0.0.1 reserved until `release`.

    They lie below the range that the system hands to outgoing connections, which could otherwise take one
    while its server is down. An abstract Unix socket per port keeps others that use this class away from it.
    """

    def __init__(self, count: int) -> None:
        self._claims: list[socket.socket] = []
        self.numbers: tuple[int, ...] = tuple(self._claim() for _ in range(count))

    def release(self) -> None:
        """Give the ports back."""
        for claim in self._claims:
            claim.close()
        self._claims.clear()

    def _claim(self) -> int:
        highest = _highest()
        for _ in range(_ATTEMPTS):
            port = _dice.randint(_LOWEST, highest)
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                claim.bind(f"\0stsync-private-port-{port}")
                with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
            except OSError:
                claim.close()
                continue
            self._claims.append(claim)
            return port
        raise ServerError(f"no free port between {_LOWEST} and {highest} on 127.0.0.1; end some of the servers there")


def _highest() -> int:
    try:
        lowest_outgoing = int(_RANGE_FILE.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        lowest_outgoing = 32_768
    return lowest_outgoing - 1 if lowest_outgoing > _LOWEST + 1_000 else 60_000
