"""Listeners and local connections."""

from __future__ import annotations

import errno
import http.server
import socket
import threading
from typing import Any

import pytest

import thopters


def test_what_a_local_side_sends_stays_behind_for_no_slow_reader_of_ours() -> None:
    """Whoever receives may wait for the local side to read, which waits for us to send."""
    size = 200_000
    ours, local = socket.socketpair()
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection = http.client.HTTPConnection("api.example")
    connection.sock = near
    websocket = thopters.WebSocket(connection, b"", thopters.Clock())
    sender = thopters.Sender(websocket, thopters.SocketInput(ours))
    with ours, local, near, far:
        far.settimeout(30.0)
        sending = threading.Thread(target=sender.run, daemon=True)
        sending.start()
        local.settimeout(30.0)
        feeder = threading.Thread(target=local.sendall, args=(bytes(size),))
        feeder.start()
        came = 0
        while came < size:  # as frames, so that there is a little more
            came += len(far.recv(1 << 16))
        feeder.join()
        local.shutdown(socket.SHUT_WR)
        sending.join(30.0)
        assert sender.ended and websocket.unread() == size


def test_a_port_that_somebody_has_on_all_addresses_is_not_shared() -> None:
    with socket.create_server(("", 0)) as server, pytest.raises(OSError, match="in use"):
        thopters.see_unshared(socket.AF_INET, server.getsockname()[1])


def test_a_client_that_is_gone_before_its_port_is_open_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """macOS sets no option of a socket that has been reset."""
    closed = []

    class Opened:
        def close(self) -> None:
            closed.append(True)

    class Reset(socket.socket):
        def setsockopt(self, *args: Any) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(thopters, "open_port", lambda *_: Opened())
    forwarder = thopters.Forwarder.__new__(thopters.Forwarder)
    nobody: Any = None
    forwarder.sprite = thopters.Sprite("dev", nobody, nobody, nobody)
    forwarder._forward(Reset(), 80)
    assert closed == [True]
