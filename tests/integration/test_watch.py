"""`stsync status --watch`: shown again and again, on a terminal and in a pipe, until interrupted."""

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.harness import STSYNC, Cluster, wait_for


@contextmanager
def watching(cluster: Cluster, out: int, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    arguments = [*STSYNC, "status", "--watch", *more, "--config", str(cluster.primary.config)]
    process = subprocess.Popen(arguments, stdout=out, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def interrupted(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == b""


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_in_a_pipe_each_look_is_a_document(cluster: Cluster) -> None:
    with watching(cluster, subprocess.PIPE, "--json") as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        cluster.primary.execute("INSERT INTO unit VALUES (1, 'one', NULL)")
        for line in iter(process.stdout.readline, b""):
            if json.loads(line)["sequence"] > first["sequence"]:
                break
        interrupted(process)


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_a_terminal_is_redrawn(cluster: Cluster) -> None:
    screen, out = pty.openpty()
    shown = b""

    def seen() -> bool:
        nonlocal shown
        shown += os.read(screen, 4096)
        return b"sequence 1" in shown and shown.count(b"in_sync") >= 4  # both nodes, drawn twice

    with watching(cluster, out) as process:
        cluster.primary.execute("INSERT INTO unit VALUES (1, 'one', NULL)")
        wait_for(seen, "both nodes drawn twice")
        interrupted(process)
    assert b"\x1b[" in shown
    os.close(out)
    os.close(screen)


@pytest.mark.parametrize("database_kind", ["sqlite"])
def test_in_a_pipe_without_json_the_table_is_printed_again(cluster: Cluster) -> None:
    with watching(cluster, subprocess.PIPE) as process:
        assert process.stdout is not None
        heads = 0
        for line in iter(process.stdout.readline, b""):
            heads += line.startswith(b"cluster mft")
            if heads == 3:
                break
        assert heads == 3
        interrupted(process)
