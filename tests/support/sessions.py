"""What the emulated platform has seen, and the sessions that run in its sprites."""

from __future__ import annotations

import fcntl
import shutil
import struct
import termios

import pytest
from emulation import Emulator, Fault
from emulation.exec import Session as RemoteSession
from emulation.machine import namespace_kind
from emulation.state import Sprite

import thopters as program
from support.program import Thopters

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
needs_namespace = pytest.mark.skipif(not namespace_kind(), reason="no mount namespaces here")

# A command that only a kill ends
IGNORING = "trap '' TERM HUP; echo up; while :; do sleep 0.05; done"


def remote_sessions(dev: Emulator) -> list[RemoteSession]:
    """Return the sessions on a terminal, ended ones too, oldest first."""
    return [session for session in dev.sprite("dev").sessions.values() if session.tty]


def window(session: RemoteSession) -> tuple[int, int]:
    """Return columns and rows of a remote terminal."""
    size = fcntl.ioctl(session.master, termios.TIOCGWINSZ, bytes(8))
    rows, columns, _, _ = struct.unpack("HHHH", size)
    return columns, rows


def upgrades(dev: Emulator) -> int:
    return len(dev.journal.requests("WS"))


def asked(emulator: Emulator) -> list[str]:
    """Return the requests that came, as "METHOD path"."""
    return [f"{request.method} {request.path}" for request in emulator.journal]


def writes(emulator: Emulator) -> list[str]:
    """Return the requests that change something."""
    return [f"{r.method} {r.path}" for r in emulator.journal if r.method not in ("GET", "WS")]


def session_of(sprite: Sprite, identity: str) -> RemoteSession:
    """Return the session that an id of ours stands for."""
    record = sprite.home / ".thopters/jobs" / identity / "process"
    if record.exists():
        return sprite.sessions[record.read_text().split()[1]]
    return sprite.sessions[identity.partition(".")[0]]


def lasting_id(session: RemoteSession) -> str:
    """Return the id of ours that stands for a session without a record."""
    return program.lasting_id(str(session.id), session.created)


def detach(thopters: Thopters, *words: str, options: tuple[str, ...] = ()) -> str:
    done = thopters("exec", "dev", "--detach", *options, "--", *words)
    assert done.code == 0, done
    identity = done.out.strip()
    return identity


def leave_running(thopters: Thopters, *words: str) -> str:
    """Start a command that has no record, leave it with Ctrl-\\, and return its id."""
    from support.terminals import (
        BACK,
        LEAVE,
        Tty,
    )  # which skips where there are no pseudo-terminals

    with Tty(thopters, "exec", "dev", "--no-hold", "--", *words) as terminal:
        terminal.expect("up\r\n")
        terminal.type(LEAVE)
        assert terminal.end_restored() == 0
        found = BACK.search(terminal.text)
        assert found, terminal.text
        return found[1]


def refuse_websockets(emulator: Emulator) -> None:
    """Put something before the emulator that passes requests on, but no upgrade."""
    page = {"body": b"<html>no upgrades here", "content_type": "text/html"}
    emulator.fault(Fault("WS */exec", "status", times=None, after=0, status=403, **page))
