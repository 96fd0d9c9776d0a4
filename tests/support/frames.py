"""What a server sends in a WebSocket, and the connection's end that the program is given."""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Iterable
from typing import Any


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Return `data` in pieces that end at `places`."""
    edges = [0, *sorted(places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def server_frame(
    opcode: int, payload: bytes = b"", *, final: bool = True, reserved: int = 0
) -> bytes:
    """Encode a frame after RFC 6455, 5.2; of our own, so that it can't share a mistake."""
    first = (0x80 if final else 0) | reserved << 4 | opcode
    size = len(payload)
    if size <= 125:
        head = struct.pack("!BB", first, size)
    elif size <= 0xFFFF:
        head = struct.pack("!BBH", first, 126, size)
    else:
        head = struct.pack("!BBQ", first, 127, size)
    return head + payload


BEGUN = server_frame(1, b"begun", final=False)
BROKEN_FRAMES = {
    **{f"reserved {bit}": server_frame(2, b"x", reserved=bit) for bit in (1, 2, 4, 7)},
    **{f"opcode {code}": server_frame(code, b"x") for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    **{f"fragmented {code}": server_frame(code, b"x", final=False) for code in (8, 9, 10)},
    **{f"long {code}": server_frame(code, bytes(126)) for code in (8, 9, 10)},
    "long control, 64 bits": server_frame(9, bytes(70_000)),
    "masked": bytes((0x82, 0x81)) + b"keys" + b"x",
    "masked and empty": bytes((0x82, 0x80)) + b"keys",
    "continuation of nothing": server_frame(0, b"x"),
    "continuation of nothing, to go on": server_frame(0, b"x", final=False),
    "continuation after the end": BEGUN + server_frame(0, b"x") + server_frame(0, b"y"),
    "message inside a message": BEGUN + server_frame(1, b"x"),
    "fragment inside a message": BEGUN + server_frame(2, b"x", final=False),
    "length with the top bit": bytes((0x82, 127)) + struct.pack("!Q", 1 << 63 | 1),
    "length of 2**62": bytes((0x82, 127)) + struct.pack("!Q", 1 << 62),
}


# what a server sends for a command that writes "out 1\n", "err\n" and "out 2\n", in pieces
OUT, ERR = b"out 1\nout 2\n", b"err\n"
EXITS = {
    "byte": server_frame(2, b"\x03\x00"),
    "be32": server_frame(2, b"\x03\x00\x00\x00\x00"),
    "json": server_frame(1, b'{"type": "exit", "exit_code": 0}'),
    "fragments": server_frame(2, b"\x03", final=False) + server_frame(0, b"\x00"),
}
GREETING = server_frame(1, b'{"type": "session_info", "session_id": 7, "tty": false}')
PREAMBLE = server_frame(2, b"\x01thopters-") + server_frame(2, b"\x01exec 4321\n")
REST = (
    server_frame(2, b"\x01out 1\n")
    + server_frame(9, b"ping")
    + server_frame(2, b"\x02err\n")
    + server_frame(2, b"\x01out", final=False)
    + server_frame(10, b"")
    + server_frame(0, b" 2\n")
    + server_frame(2, b"")
)
GOODBYE = server_frame(8, struct.pack("!H", 1000))


class Peer:
    """The connection that a WebSocket is given: one end of a socket pair."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def close(self) -> None:
        self.sock.close()


class Deaf:
    """A connection's end that takes everything and says nothing."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def sendmsg(self, parts: list[memoryview]) -> int:
        return sum(map(len, parts))
