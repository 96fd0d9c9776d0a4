"""The WebSocket client against a server that we did not write: the `websockets` package.

The package carries the frames; the handler here runs the requested process for real.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from support.program import Thopters

pytest.importorskip("websockets")
from websockets.sync.server import Server, ServerConnection, serve

TOKEN = "acme/1/tok/0123456789abcdef"


class ExecServer:
    """Answers exec upgrades with processes; `fragments` splits what it sends into pieces."""

    def __init__(self) -> None:
        self.fragments = 0
        self.pings = False
        self.close_code: int | None = None  # close so, once the script has come
        self.requests: list[Any] = []
        self.server: Server = serve(
            self.handle, "127.0.0.1", 0, max_size=None, compression=None, ping_interval=None
        )
        self.url = f"http://127.0.0.1:{self.server.socket.getsockname()[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def handle(self, connection: ServerConnection) -> None:
        request = connection.request
        assert request is not None
        self.requests.append(request)
        if self.close_code:
            connection.recv()
            connection.close(self.close_code, "bye")
            return
        query = parse_qs(urlsplit(request.path).query)
        with subprocess.Popen(
            query["cmd"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            self.serve_process(connection, process)

    def serve_process(self, connection: ServerConnection, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin and process.stdout and process.stderr
        feeder = threading.Thread(target=self.feed, args=(connection, process))
        feeder.start()
        lock = threading.Lock()
        pumps = [
            threading.Thread(target=self.pump, args=(connection, lock, number, pipe.fileno()))
            for number, pipe in ((1, process.stdout), (2, process.stderr))
        ]
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        code = process.wait()
        connection.send(bytes((3, code if code >= 0 else 128 - code)))
        feeder.join()

    def feed(self, connection: ServerConnection, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        for message in connection:
            assert isinstance(message, bytes)
            try:
                if message[0] == 4:
                    process.stdin.close()
                else:
                    process.stdin.write(message[1:])
                    process.stdin.flush()
            except OSError:
                continue

    def pump(
        self, connection: ServerConnection, lock: threading.Lock, number: int, fd: int
    ) -> None:
        while data := os.read(fd, 1 << 16):
            message = bytes((number,)) + data
            with lock:
                if self.pings:
                    connection.ping()
                if self.fragments:
                    size = -(-len(message) // self.fragments)
                    connection.send(message[i : i + size] for i in range(0, len(message), size))
                else:
                    connection.send(message)


@pytest.fixture
def server(thopters: Thopters) -> Iterator[ExecServer]:
    server = ExecServer()
    thopters.env |= {"SPRITES_API_URL": server.url, "SPRITE_TOKEN": TOKEN}
    yield server
    server.server.shutdown()
    server.thread.join()


@pytest.mark.parametrize("fragments", [0, 2, 7])
def test_streams_and_status(thopters: Thopters, server: ExecServer, fragments: int) -> None:
    server.fragments, server.pings = fragments, True
    done = thopters("exec", "dev", "--", "bash", "-c", "echo out; echo err >&2; exit 7")
    assert (done.code, done.out, done.err) == (7, "out\n", "err\n")
    assert server.requests[0].headers["Authorization"] == "Bearer " + TOKEN


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 65537, 3_000_000])
def test_input_arrives_byte_for_byte(thopters: Thopters, server: ExecServer, size: int) -> None:
    data = os.urandom(size)
    done = thopters("exec", "-i", "dev", "--", "sha256sum", stdin=data)
    assert (done.code, done.err) == (0, "")
    assert done.out.split()[0] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("fragments", [0, 5])
def test_output_arrives_byte_for_byte(
    thopters: Thopters, server: ExecServer, fragments: int
) -> None:
    server.fragments = fragments
    data = os.urandom(3_000_000)
    done = thopters("exec", "-i", "dev", "--", "cat", stdin=data)
    assert (done.code, done.err) == (0, "")
    assert done.out_bytes == data


@pytest.mark.parametrize("code", [1000, 1001, 1011])
def test_a_close_before_the_status_is_no_success(
    thopters: Thopters, server: ExecServer, code: int
) -> None:
    server.close_code = code
    done = thopters("exec", "dev", "--", "true")
    assert (done.code, done.out) == (255, "")
    assert f"closed with code {code}: bye" in done.err
    assert "not known whether it has run" in done.err
