"""A Stop that could not be made leaves nothing behind that fails later."""

import errno
import gc
import os
import sys

import pytest

from common.stop import Stop


def test_without_descriptors_it_says_so_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left() -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    ignored: list[object] = []
    gc.collect()  # what others left behind
    monkeypatch.setattr(os, "pipe", none_left)
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    with pytest.raises(OSError, match="Too many open files"):
        Stop()
    gc.collect()
    assert ignored == []


def test_its_descriptors_are_given_back() -> None:
    made = Stop()
    descriptors = made._read, made._write
    del made
    gc.collect()
    for one in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(one)
