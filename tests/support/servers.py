"""Servers that the network can put before the program, on the loopback interface.

`Server` accepts and keeps count. `Canned` answers requests with bytes from a test, `TlsRelay`
speaks TLS in front of another server, and `ConnectProxy` is the proxy of a company.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Self

from emulation.journal import Request
from emulation.wire import Gone, Wire, read_body, read_request


class Server:
    """Serves each connection in a thread of its own, for as long as it is entered."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self.accepted = 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._open:
            sock.close()

    def connect(self, port: int) -> socket.socket:
        """Return a connection to another server, which ends with this one."""
        sock = socket.create_connection(("127.0.0.1", port))
        with self._lock:
            self._open.append(sock)
        return sock

    def release(self, *socks: socket.socket) -> None:
        """Close connections whose both ends are done, so that any number can follow."""
        with self._lock:
            for sock in socks:
                self._open.remove(sock)
                sock.close()

    def serve(self, sock: socket.socket) -> None:
        """Serve one connection; whatever breaks it ends it. The base class never answers."""
        while sock.recv(1 << 16):
            pass

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            if self.stopping.is_set():
                sock.close()
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.accepted += 1
                self._open.append(sock)
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, Gone):
            self.serve(sock)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


class Canned(Server):
    """Has `answer` write the bytes that answer a request; then the connection ends.

    Unless it `keeps` connections: then more requests may come.
    """

    def __init__(self, answer: Callable[[Request, Wire], None], *, keeps: bool = False) -> None:
        self.answer = answer
        self.keeps = keeps
        self.requests: list[Request] = []
        super().__init__()

    def serve(self, sock: socket.socket) -> None:
        wire = Wire(sock)
        while True:
            request = read_request(wire)
            request.body = read_body(wire, request.headers)
            if request.headers.get("Upgrade"):
                request.method = "WS"
            self.requests.append(request)
            self.answer(request, wire)
            if not self.keeps:
                return

    def methods(self) -> list[str]:
        return [request.method for request in self.requests]


def response(
    body: bytes, status: int = 200, *headers: str, kind: str = "application/json"
) -> bytes:
    """Return a whole answer; a Content-Length or Content-Type in `headers` takes ours' place."""
    named = {header.partition(":")[0] for header in headers}
    own = [f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
    own = [header for header in own if header.partition(":")[0] not in named]
    return "\r\n".join([f"HTTP/1.1 {status} Status", *own, *headers, "", ""]).encode() + body


def pump(
    one: socket.socket,
    two: socket.socket,
    keep: Callable[[bytes], object] = lambda data: None,
    change: Callable[[bytes], bytes] = lambda data: data,
) -> None:
    """Pass bytes on both ways until either side ends; one thread, as TLS wants it.

    `keep` gets all of them, `change` those of `one` before they are passed on.
    """
    while True:
        pending = isinstance(one, ssl.SSLSocket) and one.pending()
        for source in [one] if pending else select.select([one, two], [], [])[0]:
            data = source.recv(1 << 16)
            if not data:
                return
            keep(data)
            if source is one:
                two.sendall(change(data))
            else:
                one.sendall(data)


def read_head(sock: socket.socket) -> tuple[bytes, bytes]:
    """Return the head of a request, and what came behind it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(1 << 16)
        if not more:
            raise Gone
        data += more
    head, end, rest = data.partition(b"\r\n\r\n")
    return head + end, rest


def allow_old_tls(context: ssl.SSLContext) -> None:
    """Have a context speak what is out of date; OpenSSL and Python both have to be asked."""
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED


class TlsRelay(Server):
    """Speaks TLS with a certificate in front of the server at `port`.

    `meddle` may change a request's head, as a filter can that looks into TLS, or answer in the
    server's place and return nothing.
    """

    def __init__(
        self,
        port: int,
        certificate: Path,
        *,
        meddle: Callable[[bytes, socket.socket], bytes] = lambda head, client: head,
        newest: ssl.TLSVersion | None = None,
    ) -> None:
        self.target = port
        self.meddle = meddle
        self.handshakes = 0
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate)
        if newest:
            allow_old_tls(self.context)
            with warnings.catch_warnings(action="ignore"):
                self.context.maximum_version = newest
        super().__init__()
        self.url = f"https://localhost:{self.port}"

    def serve(self, sock: socket.socket) -> None:
        with self.context.wrap_socket(sock.dup(), server_side=True) as client:
            self.handshakes += 1
            server = self.connect(self.target)
            pump(client, server, change=lambda data: self._meddle(data, client))
            # so that the goodbye of TLS is sent, and an answer is not lost to a reset
            with contextlib.suppress(OSError):
                client.unwrap().close()
        self.release(sock, server)

    def _meddle(self, data: bytes, client: ssl.SSLSocket) -> bytes:
        """Return what is passed on of the client's; each request begins with a read of its own."""
        if not re.match(rb"[A-Z]+ /\S* HTTP/1\.1\r\n", data):
            return data
        head, end, rest = data.partition(b"\r\n\r\n")
        assert end, "a request's head comes in one piece"
        head = self.meddle(head + end, client)
        return head + rest if head else b""


class ConnectProxy(Server):
    """Leads every CONNECT to `port`, or answers `refusal`; keeps all that passes through it.

    It takes its time, `delay_s`, for each.
    """

    def __init__(self, port: int, refusal: bytes = b"", *, delay_s: float = 0.0) -> None:
        self.target = port
        self.refusal = refusal
        self.delay_s = delay_s
        self.heads: list[bytes] = []
        self.seen = bytearray()
        super().__init__()

    def serve(self, sock: socket.socket) -> None:
        head, rest = read_head(sock)
        self.heads.append(head)
        self.seen += head + rest
        self.stopping.wait(self.delay_s)
        if self.refusal:
            sock.sendall(self.refusal)
            return
        server = self.connect(self.target)
        sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        if rest:
            server.sendall(rest)
        pump(sock, server, self.seen.extend)
