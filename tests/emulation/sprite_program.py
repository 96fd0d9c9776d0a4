"""A stand-in for the vendor's `sprite` program, in its dialect of summer 2026.

  sprite [-o ORG] [-s NAME] --version | org list | console | exec -- CMD ... | proxy PORT ...

It acts on the API of its stored selection, else on SPRITES_API_URL with SPRITE_TOKEN, and as the
real one `-o` changes what is selected, the shell is the local one's kind, and console does not
pass on a status. With STAND_IN_LOG set, each call appends to that file, as one line of JSON, its
words and the variables that matter. No thopters in here: it is another client of the emulator.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import sys
import termios
import threading
import tty
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlencode, urlsplit

VERSION = "sprite version v0.0.1-rc46"
WATCHED = ("SHELL", "SPRITE_URL", "ZSH_VERSION", "SPRITE_ORG", "SPRITE_TOKEN")
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def die(why: str, status: int = 1) -> NoReturn:
    print(f"Error: {why}", file=sys.stderr)
    sys.exit(status)


class Login:
    """The stored login, read as the program reads it."""

    def __init__(self, org: str | None) -> None:
        self.path = Path(os.environ["HOME"]) / ".sprites" / "sprites.json"
        stored = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.urls: dict[str, Any] = stored.get("urls", {})
        selection = stored.get("current_selection", {})
        self.url = selection.get("url") or os.environ.get("SPRITES_API_URL", "")
        self.org = org or os.environ.get("SPRITE_ORG") or selection.get("org")
        orgs = self.urls.get(self.url, {}).get("orgs", {})
        if self.urls:
            if self.org not in orgs:
                die(f"organization {self.org} not found")
            self.token = orgs[self.org].get("api_token") or orgs[self.org].get("token", "")
            if org and org != selection.get("org"):
                stored["current_selection"] = {**selection, "org": org}
                self.path.write_text(json.dumps(stored))
        else:
            self.token = os.environ.get("SPRITE_TOKEN", "")
        if not self.token:
            die("not logged in; run: sprite login")


class WebSocket:
    """A client's side, no more than is needed here: blocking, one thread receives."""

    def __init__(self, login: Login, target: str) -> None:
        parts = urlsplit(login.url)
        self.sock = socket.create_connection((parts.hostname or "", parts.port or 80), 30)
        self.sock.settimeout(None)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {target} HTTP/1.1",
            f"Host: {parts.netloc}",
            f"Authorization: Bearer {login.token}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
        ]
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode())
        self._stream = self.sock.makefile("rb")
        status = self._stream.readline().split(b" ")[1]
        while self._stream.readline().strip():
            pass
        if status != b"101":
            raise ConnectionError(f"HTTP {status.decode()}")
        self._lock = threading.Lock()

    def send(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0xFF, size)
        with self._lock:
            self.sock.sendall(head + b"\0\0\0\0" + payload)  # a mask of zeros is one too

    def receive(self) -> tuple[int, bytes] | None:
        """Return the next message, None at the end."""
        while True:
            head = self._stream.read(2)
            if len(head) < 2:
                return None
            opcode, size = head[0] & 0x0F, head[1]
            if size >= 126:
                size = int.from_bytes(self._stream.read(2 if size == 126 else 8), "big")
            payload = self._stream.read(size)
            if opcode == PING:
                self.send(PONG, payload)
            elif opcode == CLOSE:
                return None
            elif opcode != PONG:
                return opcode, payload

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


def connect(login: Login, name: str, what: str, query: list[tuple[str, str]]) -> WebSocket:
    """Open a socket of a sprite; a sleeping one says a few times that it starts."""
    target = f"/v1/sprites/{quote(name)}/{what}" + ("?" + urlencode(query) if query else "")
    for _ in range(100):
        try:
            return WebSocket(login, target)
        except ConnectionError as error:
            why = str(error)
            if why != "HTTP 503":
                break
            select.select([], [], [], 0.05)
    die(f"connecting to {name}: {why}")


def feed(websocket: WebSocket, *, terminal: bool) -> None:
    """Forward stdin to its end; on a terminal's stream that is typed as ^D."""
    prefix = b"" if terminal else b"\0"
    with contextlib.suppress(OSError):
        while data := os.read(0, 65536):
            websocket.send(BINARY, prefix + data)
        websocket.send(BINARY, b"\4")


def exit_status(message: bytes) -> int | None:
    with contextlib.suppress(ValueError):
        told = json.loads(message)
        if told.get("type") == "exit":
            return int(told["exit_code"])
    return None


def console(login: Login, name: str) -> int:
    shell = os.path.basename(os.environ.get("SHELL", "bash"))
    size = shutil.get_terminal_size()
    query = [("cmd", shell), ("cmd", "--login"), ("path", shell), ("tty", "true")]
    query += [("stdin", "true"), ("cols", str(size.columns)), ("rows", str(size.lines))]
    websocket = connect(login, name, "exec", query)
    before = termios.tcgetattr(0) if os.isatty(0) else None
    feeder = threading.Thread(
        target=feed, args=(websocket,), kwargs={"terminal": True}, daemon=True
    )
    try:
        if before:
            tty.setraw(0)
        while message := websocket.receive():
            opcode, data = message
            if opcode == TEXT and exit_status(data) is not None:
                return 0
            if opcode == BINARY:
                os.write(1, data)
                if not feeder.ident:  # a ^D before the prompt would be lost
                    feeder.start()
    finally:
        if before:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
    die("connection closed")


def execute(login: Login, name: str, argv: list[str]) -> int:
    query = [("cmd", word) for word in argv] + [("path", argv[0]), ("stdin", "true")]
    websocket = connect(login, name, "exec", query)
    threading.Thread(
        target=feed, args=(websocket,), kwargs={"terminal": False}, daemon=True
    ).start()
    while message := websocket.receive():
        opcode, data = message
        if opcode == BINARY and data[:1] in (b"\1", b"\2"):
            os.write(data[0], data[1:])
        elif opcode == BINARY and data[:1] == b"\3":
            return data[1]
    die("connection closed")


def forward(login: Login, name: str, client: socket.socket, remote: int) -> None:
    websocket = connect(login, name, "proxy", [])
    websocket.send(TEXT, json.dumps({"host": "localhost", "port": remote}).encode())
    websocket.receive()

    def upwards() -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                websocket.send(BINARY, data)
        websocket.close()

    threading.Thread(target=upwards, daemon=True).start()
    with contextlib.suppress(OSError), client:
        while message := websocket.receive():
            client.sendall(message[1])
        client.shutdown(socket.SHUT_WR)


def serve(login: Login, name: str, listener: socket.socket, remote: int) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=forward, args=(login, name, client, remote), daemon=True).start()


def proxy(login: Login, name: str, ports: list[str]) -> NoReturn:
    pairs = [port.split(":") for port in ports]
    listeners = [
        (socket.create_server(("127.0.0.1", int(pair[0]))), int(pair[-1])) for pair in pairs
    ]
    for listener, remote in listeners:
        arguments = (login, name, listener, remote)
        threading.Thread(target=serve, args=arguments, daemon=True).start()
        print(f"Forwarding localhost:{listener.getsockname()[1]} -> {remote}", flush=True)
    while True:
        select.select([], [], [])


def record() -> None:
    path = os.environ.get("STAND_IN_LOG")
    if path:
        watched = {name: os.environ[name] for name in WATCHED if name in os.environ}
        with open(path, "a") as file:
            file.write(json.dumps({"argv": sys.argv[1:], "env": watched}) + "\n")


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback: it is no Python to its users
    record()
    words = sys.argv[1:]
    options: dict[str, str] = {}
    while words and words[0] in ("-o", "-s"):
        options[words[0]], words = words[1], words[2:]
    if words == ["--version"]:
        print(VERSION)
        return 0
    login = Login(options.get("-o"))
    if words == ["org", "list"]:
        for url, entry in login.urls.items():
            for org in entry["orgs"]:
                print(f"{'*' if (url, org) == (login.url, login.org) else ' '} {org} ({url})")
        return 0
    name = options.get("-s") or die("no sprite selected")
    if words == ["console"]:
        return console(login, name)
    if words[:2] == ["exec", "--"] and words[2:]:
        return execute(login, name, words[2:])
    if words[:1] == ["proxy"] and words[1:]:
        proxy(login, name, words[1:])
    die(f"unknown command {' '.join(words)}")


if __name__ == "__main__":
    sys.exit(main())
