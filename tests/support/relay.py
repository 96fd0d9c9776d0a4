"""A TCP relay between the program and a server: it records both streams, and cuts one if asked.

What is cut is lost to the receiver alone. The server can still send the rest and go on with its
work, as it can on a network that breaks.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any


@dataclass
class Cut:
    """Where a stream ends: behind the first `size` bytes, as soon as there would be one more."""

    connection: int  # counted from 0
    size: int
    upward: bool = False  # what the program sends, else what the server does
    reset: bool = False  # by RST, else by FIN
    stay: bool = False  # neither: what follows is swallowed, and the connection stays open
    lasting: bool = False  # the connections that follow are cut as well


class SlowUplink:
    """Takes all that is sent at once, and passes it on at so many bytes a second."""

    def __init__(self, sock: socket.socket, pace: int) -> None:
        self._sock = sock
        self._pace = pace
        self._waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._pass_on, daemon=True).start()

    def sendall(self, data: bytes) -> None:
        self._waiting.put(data)

    def shutdown(self, how: int) -> None:
        self._waiting.put(b"")

    def _pass_on(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._waiting.get():
                self._sock.sendall(data)
                time.sleep(len(data) / self._pace)  # this is what it is for
            self._sock.shutdown(socket.SHUT_WR)


class Connection:
    """One connection of the program's, and the one to the server that belongs to it."""

    def __init__(
        self, client: socket.socket, server: socket.socket, cut: Cut | None, pace: int = 0
    ) -> None:
        self.client = client
        self.server = server
        self.cut = cut
        self.sent = bytearray()  # by the program
        self.came = bytearray()  # from the server
        self.was_cut = threading.Event()
        self._begun = threading.Event()
        self._done = threading.Barrier(2, self._close)  # nothing more will pass either way
        uplink: Any = SlowUplink(server, pace) if pace else server
        ways = [(True, client, uplink, self.sent), (False, server, client, self.came)]
        self._threads = [threading.Thread(target=self._pump, args=way, daemon=True) for way in ways]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
        self._begun.set()

    def over(self, timeout_s: float) -> bool:
        """Wait until both sides are done with this connection."""
        end = time.monotonic() + timeout_s
        self._begun.wait(timeout_s)
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def end(self) -> None:
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.end()
        self.over(10)

    def _close(self) -> None:
        self.client.close()
        self.server.close()

    def _pump(
        self, upward: bool, source: socket.socket, target: socket.socket, record: bytearray
    ) -> None:
        cut = self.cut if self.cut and self.cut.upward == upward else None
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self.was_cut.is_set():
                    continue
                room = cut.size - len(record) if cut else len(data)
                if data[:room]:
                    record += data[:room]  # first, for whoever sees it arrive may look here
                    target.sendall(data[:room])
                if cut and len(data) > room:
                    self._apply(cut)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        self._done.wait()

    def _apply(self, cut: Cut) -> None:
        self.was_cut.set()
        if cut.stay:
            return
        if cut.reset:
            now = struct.pack("ii", 1, 0)
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
            # the last descriptor's close sends the RST; a read under way would hold it back
            self.client.shutdown(socket.SHUT_RD)
            self.client.close()
        else:
            self.client.shutdown(socket.SHUT_RDWR)
        if cut.upward:
            self.server.shutdown(socket.SHUT_RDWR)


class Relay:
    """Passes connections to a server's port on, for as long as it is entered."""

    def __init__(self, port: int, *, pace: int = 0) -> None:
        self.port = port
        self.pace = pace  # bytes a second upward, behind a buffer without an end; 0 for no limit
        self.connections: list[Connection] = []
        self._cut: Cut | None = None
        self.later: Cut | None = None  # of the connections behind a lasting cut, if another
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._stopping = False
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopping = True
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join()
        self._listener.close()
        self.arm(None)

    def arm(self, cut: Cut | None) -> None:
        """Forget the connections so far, and cut as said from now on."""
        for connection in self.connections:
            connection.close()
        self.connections = []
        self._cut = cut

    def settle(self, timeout_s: float = 20.0) -> None:
        """Wait until the server has ended what the program asked for."""
        for connection in self.connections:
            if not connection.over(timeout_s):
                asked = bytes(connection.sent).partition(b"\r\n")[0].decode("latin-1")
                raise TimeoutError(f"the server does not end a connection: {asked}")

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._stopping:
                client.close()
                return
            server = socket.create_connection(("127.0.0.1", self.port))
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            cut, number = self._cut, len(self.connections)
            if cut and not (number == cut.connection or (cut.lasting and number > cut.connection)):
                cut = None
            if cut and number > cut.connection:
                cut = self.later or cut
            connection = Connection(client, server, cut, self.pace)
            self.connections.append(connection)
            connection.start()
