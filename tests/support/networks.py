"""A network that keeps connections as it likes: HTTP/1.1 between the program and a server."""

from __future__ import annotations

import itertools
import re
import socket
import struct
from collections.abc import Callable

from support.servers import Server, pump, read_head

TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Fickle(Server):
    """Passes requests on to the server at `port`, and breaks connections between two of them.

    `before` gets the number of a request on its connection, the socket and the head, and `after`
    the first two when its answer has gone; the connection ends where one of them returns False.
    """

    def __init__(
        self,
        port: int,
        *,
        before: Callable[[int, socket.socket, bytes], bool] = lambda number, sock, head: True,
        after: Callable[[int, socket.socket], bool] = lambda number, sock: True,
    ) -> None:
        self.target = port
        self.before = before
        self.after = after
        super().__init__()

    def serve(self, sock: socket.socket) -> None:
        server = self.connect(self.target)
        for number in itertools.count():
            head, rest = read_head(sock)
            if not self.before(number, sock, head):
                return
            server.sendall(head + rest)
            pass_on(sock, server, head, rest)
            head, rest = read_head(server)
            sock.sendall(head + rest)
            if head.startswith(b"HTTP/1.1 101"):
                return pump(sock, server)
            pass_on(server, sock, head, rest)
            if not self.after(number, sock):
                return


def pass_on(source: socket.socket, sink: socket.socket, head: bytes, rest: bytes) -> None:
    """Pass what is missing of a body, of which `rest` has gone already."""
    length = re.search(rb"(?i)\r\ncontent-length: *([0-9]+)\r\n", head)
    is_chunked = re.search(rb"(?i)\r\ntransfer-encoding: *chunked\r\n", head)
    left = int(length[1]) - len(rest) if length else 0
    while left > 0 or (is_chunked and not rest.endswith(b"0\r\n\r\n")):
        data = source.recv(1 << 16)
        if not data:
            return
        sink.sendall(data)
        left -= len(data)
        rest = rest[-5:] + data


def reset(sock: socket.socket) -> None:
    """Have the end of a connection be a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
