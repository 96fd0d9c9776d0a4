"""HTTP/1.1 and the server's side of RFC 6455, strict about what a client may send."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from email.message import Message
from email.parser import Parser
from email.utils import formatdate
from http.client import responses

from .journal import Request

MAX_HEAD = 1 << 20


class Gone(Exception):
    """The connection is over, for whatever reason."""


class Wire:
    """One accepted connection; counts bytes, so that faults can cut it anywhere."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.cut_out: int | None = None  # so many more bytes may leave
        self.cut_in: int | None = None  # so many more bytes may come
        self.drip_s = 0.0
        self._buffer = b""
        self._waits = False  # for bytes that have not come
        self._ended = self._closed = False

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, Gone at the end."""
        if self._buffer:
            data, self._buffer = self._buffer[:size], self._buffer[size:]
        else:
            if self.cut_in == 0:
                self.reset()
            self._waits = True
            try:
                data = self.sock.recv(size)
            except OSError:
                raise Gone from None
            finally:
                self._waits = False
            if not data:
                raise Gone
        if self.cut_in is not None:
            data = data[: self.cut_in]
            self.cut_in -= len(data)
            self._buffer = b""
            if not data:
                self.reset()
        return data

    def read_exactly(self, size: int) -> bytes:
        parts, missing = [], size
        while missing:
            parts.append(self.read(min(missing, 1 << 18)))
            missing -= len(parts[-1])
        return b"".join(parts)

    def read_head(self) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.read(1 << 16)
            if len(data) > MAX_HEAD:
                raise Gone
        head, _, rest = data.partition(b"\r\n\r\n")
        self._buffer = rest + self._buffer
        return head + b"\r\n\r\n"

    def write(self, *parts: bytes | memoryview) -> None:
        if self._ended:
            return
        if self.cut_out is None and not self.drip_s:
            self._send_all(parts)
            return
        for byte in b"".join(parts):
            if self.cut_out == 0:
                self.close()
                raise Gone
            self._send_all([bytes((byte,))])
            if self.cut_out is not None:
                self.cut_out -= 1
            time.sleep(self.drip_s)

    def _send_all(self, parts: tuple[bytes | memoryview, ...] | list[bytes]) -> None:
        try:
            left = [memoryview(part) for part in parts if len(part)]
            while left:
                sent = self.sock.sendmsg(left)
                while left and sent >= len(left[0]):
                    sent -= len(left.pop(0))
                if sent:
                    left[0] = left[0][sent:]
        except OSError:
            raise Gone from None

    def reset(self) -> None:
        """End the connection with a RST, and this thread's work with it."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._closed = True
        self.sock.close()
        raise Gone

    def has_taken_all(self) -> bool:
        """Tell whether all that has come was taken, and answered."""
        with contextlib.suppress(OSError, ValueError):  # it is over
            return self._waits and not select.select([self.sock], [], [], 0)[0]
        return True

    def end(self) -> None:
        """Send no more, and let the peer close: RFC 6455, 7.1.1.

        A close with bytes of its own unread, a ping say, would be a reset, and what is on its way
        would be lost.
        """
        self._ended = True
        with contextlib.suppress(OSError):  # the peer was first
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            with contextlib.suppress(OSError):  # the peer was first
                self.sock.shutdown(socket.SHUT_RDWR)
            self.sock.close()


def read_request(wire: Wire) -> Request:
    """Return the next request with its body."""
    head = wire.read_head()
    line, _, rest = head.decode("latin-1").partition("\r\n")
    method, target, _version = [*line.split(" "), "", "", ""][:3]
    request = Request(head, method, target, Parser().parsestr(rest))
    return request


def read_body(wire: Wire, headers: Message) -> bytes:
    return b"".join(body_pieces(wire, headers))


def body_pieces(wire: Wire, headers: Message) -> Iterator[bytes]:
    """Yield a body as it comes."""
    if headers.get("Expect", "").lower() == "100-continue":
        wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get("Transfer-Encoding", "").lower() == "chunked":
        yield from read_chunks(wire)
        return
    missing = int(headers.get("Content-Length") or 0)
    while missing:
        yield (piece := wire.read(min(missing, 1 << 18)))
        missing -= len(piece)


def read_chunks(wire: Wire) -> Iterator[bytes]:
    while True:
        line = b""
        while not line.endswith(b"\r\n"):
            line += wire.read_exactly(1)
        size = int(line.split(b";")[0], 16)
        data = wire.read_exactly(size + 2)
        if not size:
            return
        yield data[:-2]


class Reply:
    """An answer: a body, or pieces that are sent as chunks."""

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        *,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
        pieces: Iterator[bytes] | None = None,
    ) -> None:
        self.status = status
        self.body = body
        self.pieces = pieces
        self.headers = {"Content-Type": content_type, **(headers or {})}
        self.final_chunk = True

    @classmethod
    def json(cls, document: object, status: int = 200, **headers: str) -> Reply:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status, json.dumps(document).encode(), headers=named)

    @classmethod
    def error(cls, status: int, code: str, message: str, **more: object) -> Reply:
        """Return an error as the control plane shapes it."""
        return cls.json({"error": code, "message": message, **more}, status)

    @classmethod
    def text(cls, status: int, text: str) -> Reply:
        """Return an error as the server inside a sprite shapes it."""
        return cls(status, text.encode() + b"\n", content_type="text/plain; charset=utf-8")

    def head(self, date: float) -> bytes:
        headers = {"Date": formatdate(date, usegmt=True), **self.headers}
        if self.pieces is not None:
            headers["Transfer-Encoding"] = "chunked"
        elif self.status not in (101, 204):
            headers["Content-Length"] = str(len(self.body))
        lines = [f"HTTP/1.1 {self.status} {responses.get(self.status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def send(self, wire: Wire, date: float, *, with_body: bool = True) -> None:
        if self.pieces is None or not with_body:
            wire.write(self.head(date) + (self.body if with_body else b""))
            return
        wire.write(self.head(date))
        for piece in self.pieces:
            wire.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if self.final_chunk:
            wire.write(b"0\r\n\r\n")
        else:
            wire.close()


TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accept_key(key: str) -> str:
    return base64.b64encode(
        hashlib.sha1(key.encode() + GUID, usedforsecurity=False).digest()
    ).decode()


class ServerSocket:
    """The server's side of an open WebSocket."""

    def __init__(self, wire: Wire, request: Request, odd: Callable[[str], None]) -> None:
        self.wire = wire
        self.request = request
        self.odd = odd
        self._lock = threading.Lock()

    def send(self, opcode: int, *parts: bytes | memoryview, final: bool = True) -> None:
        """Send one frame; the parts are its payload."""
        size = sum(map(len, parts))
        first = opcode | (0x80 if final else 0)
        if size < 126:
            head = struct.pack("!BB", first, size)
        elif size < 1 << 16:
            head = struct.pack("!BBH", first, 126, size)
        else:
            head = struct.pack("!BBQ", first, 127, size)
        with self._lock:
            self.request.add_sent(opcode, parts)
            self.wire.write(head, *parts)

    def send_raw(self, data: bytes) -> None:
        with self._lock:
            self.wire.write(data)

    def close(self, code: int, reason: str = "") -> None:
        self.send(CLOSE, struct.pack("!H", code) + reason.encode())

    def messages(self) -> Iterator[tuple[int, bytes]]:
        """Yield (opcode, payload) until the client leaves; pings are answered."""
        opcode, parts = 0, list[bytes]()
        while True:
            first, payload = self._frame()
            code = first & 0x0F
            if code == PING:
                self.send(PONG, payload)
            elif code == CLOSE:
                self.send(CLOSE, payload)
                raise Gone
            elif code in (0, TEXT, BINARY):
                if bool(code) == bool(opcode):
                    self._refuse("the client mixes up fragments")
                opcode = opcode or code
                parts.append(payload)
                if first & 0x80:
                    message = b"".join(parts)
                    self.request.add_received(opcode, message)
                    yield opcode, message
                    opcode, parts = 0, []
            elif code != PONG:
                self._refuse(f"the client sent a frame with opcode {code}")

    def _frame(self) -> tuple[int, bytes]:
        first, second = self.wire.read_exactly(2)
        if first & 0x70:
            self._refuse("the client set reserved bits")
        if not second & 0x80:
            self._refuse("the client sent an unmasked frame")
        size = second & 0x7F
        if size >= 126:
            size = int.from_bytes(self.wire.read_exactly(2 if size == 126 else 8), "big")
        key = self.wire.read_exactly(4)
        data = self.wire.read_exactly(size)
        repeated = (key * (size // 4 + 1))[:size]
        number = int.from_bytes(data, "big") ^ int.from_bytes(repeated, "big")
        return first, number.to_bytes(size, "big")

    def _refuse(self, what: str) -> None:
        self.odd(what)
        self.close(1002, what)
        self.wire.close()
        raise Gone
