"""What the system gives, and what other systems than this one give."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import sys
from pathlib import Path
from typing import NoReturn

import pytest

import thopters


def test_descriptors_above_what_select_can_hold_are_waited_for() -> None:
    ours, theirs = socket.socketpair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("so many descriptors can't be had here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    high = socket.socket(fileno=fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD, 1500))
    try:
        with ours, theirs, high:
            assert thopters.wait_for([high], [], 0) == ([], [])
            assert thopters.wait_for([high], [high], None) == ([], [high])
            theirs.send(b"x")
            assert thopters.wait_for([high, theirs], [high], 10) == ([high], [high])
            theirs.shutdown(socket.SHUT_RDWR)
            assert thopters.wait_for([high], [], 10) == ([high], [])
        with pytest.raises(ValueError):
            thopters.wait_for([high], [], 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_macos_has_its_own_way_to_force_a_file_to_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda fd, command: calls.append(command))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync"))
    thopters.sync(0)
    assert calls == [51]

    def refuse(fd: int, command: int) -> NoReturn:
        raise OSError

    monkeypatch.setattr(fcntl, "fcntl", refuse)  # as a file system over the network does
    thopters.sync(0)
    assert calls == [51, "fsync"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_folder_that_is_not_for_the_disk_is_none_to_force_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    def refuse(fd: int) -> NoReturn:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", refuse)
    fails = pytest.raises(OSError, match="no") if number == errno.EIO else contextlib.nullcontext()
    with fails:
        thopters.sync_folder(str(tmp_path))


@pytest.mark.parametrize("knows_links", [True, False])
def test_a_private_file_is_opened_by_no_more_than_what_the_system_knows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, knows_links: bool
) -> None:
    calls: list[object] = []
    really = os.open

    def note(path: str, flags: int, mode: int) -> int:
        calls.append(flags)
        return really(path, flags, mode)

    expected = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    if not knows_links:
        monkeypatch.delattr(os, "O_NOFOLLOW")  # as on Windows
        expected = os.O_RDWR | os.O_CREAT
    monkeypatch.setattr(os, "open", note)
    os.close(thopters.open_private(str(tmp_path / "file"), os.O_RDWR | os.O_CREAT))
    assert calls == [expected]
