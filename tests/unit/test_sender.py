"""The sender: one publishes at a time, and whoever comes meanwhile neither waits nor tries again and again."""

import threading
from typing import Any, cast

import pytest

from common.topology import Topology
from publisher.sender import Sender


def test_who_finds_another_publishing_leaves_the_rest_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay's thread, reading a long journal, must not be slowed down by the sender's (STYLE 12)."""
    sender = Sender(cast(Any, None), Topology("mft", ("st1", "st2"), "st1"), published=0, head=0)
    begun, go_on, pages = threading.Event(), threading.Event(), list[str]()

    def page() -> bool:
        pages.append(threading.current_thread().name)
        begun.set()
        return not go_on.wait(30)

    monkeypatch.setattr(sender, "_publish_page", page)
    busy = threading.Thread(target=sender.pump, name="busy")
    busy.start()
    assert begun.wait(30)
    for _ in range(3):
        sender.pump()
        assert not sender._wake.is_set(), "the sender's own thread would come back at once"
    assert pages == ["busy"]
    go_on.set()
    busy.join(30)
    assert pages == ["busy", "busy"], "it looked once more, for those that came"
    sender.pump()
    assert len(pages) == 3
