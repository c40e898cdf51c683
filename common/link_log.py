"""The broker links' states in the log, each told once, so that a link that is only renewed says nothing, and among the troubles."""

import structlog

from common.linkstate import LinkState, StateName
from common.troubles import Troubles

_ORDINARY: tuple[StateName, ...] = ("ready", "connecting", "stopped")


class LinkLog:
    """Called by the links' threads; each link has one of them, and an event name of its own."""

    def __init__(self, name: str, troubles: Troubles) -> None:
        self._troubles = troubles
        self._log = structlog.get_logger(name)
        self._told: dict[str, LinkState] = {}

    def tell(self, event: str, state: LinkState) -> None:
        """Log a state that differs from the last one that was told; a pause is its owner's own doing and his to tell."""
        if state.name == "paused" or self._told.get(event) == state:
            return
        self._troubles.link(event, state)
        self._told[event] = state
        level = self._log.info if state.name in _ORDINARY else self._log.warning
        level(event, state=state.name, reason=state.reason)
