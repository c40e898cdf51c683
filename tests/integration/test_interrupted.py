"""Ctrl-C in `stsync sync`, wherever it comes: what was asked for is called off, and the operator told what has become of it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from common import sessions
from common.session import Phase
from common.stop import Stop
from publisher.commands import sync
from tests.conftest import NewDatabase
from tests.harness import NO_BROKER, Node, make_cluster


@pytest.fixture
def primary(tmp_path: Path, new_database: NewDatabase) -> Iterator[Node]:
    """One whose service does not run."""
    schema = ("CREATE TABLE item (id BIGINT PRIMARY KEY)",)
    made = make_cluster(tmp_path / "c", "sqlite", NO_BROKER, new_database, schema=schema, tables="item\n")
    yield made.primary
    for one in made.nodes.values():
        one.close()


def asked(primary: Node) -> Result:
    app = typer.Typer()
    sync.register(app)
    return CliRunner().invoke(app, ["--config", str(primary.config)])


def interrupt(*_arguments: Any, **_named: Any) -> Any:
    raise KeyboardInterrupt


def after(function: Callable[..., Any]) -> Callable[..., Any]:
    def then(*arguments: Any, **named: Any) -> Any:
        function(*arguments, **named)
        raise KeyboardInterrupt

    return then


def test_before_anything_was_asked_for(primary: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "ask", interrupt)
    done = asked(primary)
    assert (done.exit_code, "nothing had been asked for" in done.stderr) == (130, True), done.output


@pytest.mark.parametrize("where", ["as it is asked for", "before it is waited for"])
def test_before_the_session_began(primary: Node, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    if where == "as it is asked for":
        monkeypatch.setattr(sessions, "ask", after(sessions.ask))
    else:
        monkeypatch.setattr(sync, "_watching", interrupt)
    done = asked(primary)
    assert (done.exit_code, "had not begun, and is not asked for any more" in done.stderr) == (130, True), done.output
    assert primary.rows("SELECT * FROM stsync_sessions") == []


def test_once_it_has_begun(primary: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service ends it: here the test does, once it is called off."""

    def begun(*_arguments: Any, **_named: Any) -> Any:
        primary.execute("UPDATE stsync_sessions SET phase = 'pausing'")
        raise KeyboardInterrupt

    def ended(pause_s: float) -> None:
        Stop().wait(pause_s)
        reason = "reason = 'it was cancelled'"
        primary.execute(f"UPDATE stsync_sessions SET phase = '{Phase.FAILED}', {reason}, ended_ms = 1 WHERE cancelled = 1")

    monkeypatch.setattr(sync, "_watching", begun)
    monkeypatch.setattr("publisher.commands.sync.time.sleep", ended)
    done = asked(primary)
    assert (done.exit_code, "it was cancelled" in done.stderr) == (130, True), done.output
