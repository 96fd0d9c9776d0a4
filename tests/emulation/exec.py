"""Sessions: a command's process, its streams, and the clients that come and go.

Non-terminal frames are binary messages of a stream's number and bytes: 0 stdin, 1 stdout,
2 stderr, 3 exit status (one byte), 4 end of stdin. Terminals speak raw bytes and JSON texts.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .faults import Fault
from .machine import namespace_kind
from .personality import Personality
from .wire import BINARY, TEXT, Gone, ServerSocket

if TYPE_CHECKING:
    from .state import Sprite

BLOCK = 1 << 18
SCROLLBACK_BYTES = 1 << 16
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class StartError(Exception):
    """The command could not be started."""


def environment(sprite: Sprite, personality: Personality, pairs: list[str]) -> dict[str, str]:
    default = {"PATH": DEFAULT_PATH, "USER": "sprite", "SHELL": "/bin/bash"}
    if personality.default_home:
        default["HOME"] = sprite.machine.home_inside
    if not namespace_kind():  # a tmux of the host's is none of the sprite's
        default["TMUX_TMPDIR"] = sprite.machine.home_inside
    if sprite.storage:
        default["SPRITE_STORAGE_DRIVER"] = sprite.storage
    given = dict(pair.partition("=")[::2] for pair in pairs)
    return given if given and personality.env_replaces else default | given


class Session:
    """One command; `client` is the socket that is attached, if one is."""

    def __init__(
        self,
        sprite: Sprite,
        personality: Personality,
        argv: list[str],
        *,
        env: list[str],
        directory: str,
        tty: bool,
        stdin: bool,
        size: tuple[int, int] = (80, 24),
    ) -> None:
        self.sprite = sprite
        self.personality = personality
        self.argv = argv
        self.tty = tty
        self.created = time.time()
        self.last_output = self.created
        self.exit_code: int | None = None
        self.ended = threading.Event()
        self.clients: list[Callable[[int, bytes | memoryview], None]] = []  # who is attached
        self._lock = threading.Lock()
        self._early: list[tuple[int, bytes]] = []
        self._scrollback = bytearray()  # the last of it counts
        self._start(env, directory, stdin, size)

    def _start(self, env: list[str], directory: str, stdin: bool, size: tuple[int, int]) -> None:
        machine = self.sprite.machine
        place = directory or machine.home_inside
        if not machine.host_path(place).is_dir():
            if self.personality.bad_dir == "error":
                raise StartError("failed to start process")
            place = machine.home_inside
        variables = environment(self.sprite, self.personality, env)
        program = self.argv[0]
        found = shutil.which(str(machine.host_path(program)) if "/" in program else program,
                             path=variables.get("PATH", DEFAULT_PATH))  # fmt: skip
        words = machine.command(self.argv if found else ["/bin/sh", "-c", "exit 127"], place)
        no_namespace = words[0] != "nsenter"
        streams: dict[str, Any] = {}
        if self.tty:
            master, slave = machine.open_terminal()
            self.master = io.FileIO(master, "r+")  # once it is closed its number may be another's
            self.resize(*size)
            streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        else:
            pipe = subprocess.PIPE
            streams = {
                "stdin": pipe if stdin else subprocess.DEVNULL,
                "stdout": pipe,
                "stderr": pipe,
            }
        # setsid -c makes the pty the controlling terminal; a plain new session otherwise
        if self.tty:
            words = ["setsid", "--ctty", "--wait", *words] if shutil.which("setsid") else words
        try:
            self.process = subprocess.Popen(
                words,
                env=variables,
                start_new_session=not self.tty,
                cwd=machine.host_path(place) if no_namespace else "/",
                **streams,
            )
        except OSError as error:
            raise StartError("failed to start process") from error
        self.id = self.process.pid
        machine.leaders.add(self.id)
        if self.tty:
            os.close(slave)
            sources = [(1, self.master.fileno())]
        else:
            assert self.process.stdout and self.process.stderr
            sources = [(1, self.process.stdout.fileno()), (2, self.process.stderr.fileno())]
            for _, fd in sources:
                with contextlib.suppress(OSError):
                    fcntl.fcntl(fd, 1031, 1 << 20)  # F_SETPIPE_SZ
        pumps = [threading.Thread(target=self._pump, args=pair, daemon=True) for pair in sources]
        for pump in pumps:
            pump.start()
        threading.Thread(target=self._finish, args=(pumps,), daemon=True).start()

    def resize(self, columns: int, rows: int) -> None:
        with contextlib.suppress(ValueError):  # it has ended
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _pump(self, number: int, fd: int) -> None:
        if number == 2 and self.personality.stderr_on_stdout:
            number = 1
        buffer = bytearray(BLOCK)
        view = memoryview(buffer)
        while True:
            try:
                count = os.readv(fd, [buffer])
            except OSError:  # a terminal's end
                return
            if not count:
                return
            self._output(number, view[:count])

    def _output(self, number: int, data: memoryview) -> None:
        self.last_output = time.time()
        self.sprite.touch()
        with self._lock:
            if self.tty:
                self._scrollback += data
                if len(self._scrollback) > 4 * SCROLLBACK_BYTES:
                    del self._scrollback[:-SCROLLBACK_BYTES]
            if not self.clients and not self.tty:
                self._keep(number, bytes(data))
            for client in [*self.clients]:
                try:
                    client(number, data)
                except Gone:
                    self.clients.remove(client)

    def _keep(self, number: int, data: bytes) -> None:
        """Keep what nobody reads yet, but only the last of it."""
        self._early.append((number, data))
        excess = sum(len(part) for _, part in self._early) - self.personality.replay_bytes
        while excess > 0:
            first, part = self._early.pop(0)
            if len(part) > excess:
                self._early.insert(0, (first, part[excess:]))
            excess -= len(part)

    def _finish(self, pumps: list[threading.Thread]) -> None:
        code = self.process.wait()
        self.sprite.machine.leader_has_ended(self.id)
        for pump in pumps:
            pump.join()
        if code < 0:
            code = 128 - code if self.personality.killed_exit == "128+n" else 255
        with self._lock:
            self.exit_code = code
        if self.tty:
            self.master.close()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        self.ended.set()

    def attach(self, client: Callable[[int, bytes | memoryview], None]) -> None:
        """Send what was kept, then everything that comes."""
        with self._lock:
            size = self.personality.replay_message_bytes or SCROLLBACK_BYTES
            shown = bytes(self._scrollback[-SCROLLBACK_BYTES:])
            for start in range(0, len(shown), size):
                client(1, shown[start : start + size])
            for number, data in self._early:
                client(number, data)
            self._early = []
            self.clients.append(client)

    def detach(self, client: Callable[[int, bytes | memoryview], None]) -> None:
        with self._lock, contextlib.suppress(ValueError):  # it was found out to be gone
            self.clients.remove(client)

    def write(self, data: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self.tty:
                self.master.write(data)
            elif self.process.stdin:
                self.process.stdin.write(data)
                self.process.stdin.flush()

    def end_input(self) -> None:
        with contextlib.suppress(OSError):
            if not self.tty and self.process.stdin:
                self.process.stdin.close()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.personality.kill_scope == "group":
                os.killpg(self.id, number)
            else:
                os.kill(self.id, number)

    def to_json(self) -> dict[str, Any]:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.created))
        last = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.last_output))
        identity = self.id if self.personality.session_id_type == "int" else str(self.id)
        return {
            "id": identity,
            "command": shutil.which(self.argv[0]) or self.argv[0],
            "created": stamp,
            "workdir": self.sprite.machine.home_inside,
            "tty": self.tty,
            "bytes_per_second": 0,
            "is_active": self.exit_code is None,
            "last_activity": last,
        }


def parse_duration(text: str) -> float | None:
    """Return the seconds of a Go-style duration such as 10s or 1m30s; None for 0, "for ever"."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    total, number = 0.0, ""
    rest = text
    while rest:
        if rest[0].isdigit() or rest[0] == ".":
            number, rest = number + rest[0], rest[1:]
            continue
        unit = "ms" if rest.startswith("ms") else rest[0]
        total += float(number or 0) * units.get(unit, 0)
        number, rest = "", rest[len(unit) :]
    return total or None


class Attachment:
    """A client's socket on a session: output and status out, input and resizes in."""

    def __init__(
        self, session: Session, socket: ServerSocket, faults: list[Fault], *, linger_s: float | None
    ) -> None:
        self.session = session
        self.socket = socket
        self.personality = session.personality
        self.actions = [a for f in faults if f.kind == "ws" for a in f.params["actions"]]
        self.loses_exit = any(fault.kind == "no_exit" for fault in faults)
        self.linger_s = linger_s
        self._attached = threading.Event()

    def run(self) -> None:
        """Serve the client until it leaves; input is taken once output can flow."""
        threading.Thread(target=self._deliver, daemon=True).start()
        try:
            self._attached.wait()
            for opcode, message in self.socket.messages():
                self.session.sprite.touch()
                self._take(opcode, message)
        finally:
            self.session.detach(self._send)
            if self.session.exit_code is None and self.linger_s is not None:
                self._end_later(self.linger_s)

    def _end_later(self, seconds: float) -> None:
        session = self.session

        def end() -> None:
            if not session.ended.wait(seconds):
                session.sprite.machine.thaw()
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(session.id, signal.SIGKILL)

        threading.Thread(target=end, daemon=True).start()

    def _take(self, opcode: int, message: bytes) -> None:
        session = self.session
        if opcode == TEXT:
            with contextlib.suppress(ValueError, KeyError):
                self._control(json.loads(message))
        elif session.tty:
            session.write(message)
        elif message[:1] == b"\0":
            session.write(message[1:])
        elif message[:1] == b"\4":
            session.end_input()
        else:
            self.socket.odd(f"the client sent a message for stream {message[:1]!r}")

    def _control(self, message: dict[str, Any]) -> None:
        if message.get("type") == "resize" and self.session.tty:
            self.session.resize(message["cols"], message["rows"])
        elif message.get("type") == "signal":
            self.session.signal(signal.Signals[f"SIG{message['signal']}"])
        else:
            self.socket.odd(f"the client sent an unknown message {message}")

    def _send(self, number: int, data: bytes | memoryview) -> None:
        if self.session.tty:
            self.socket.send(BINARY, data)
        else:
            self.socket.send(BINARY, bytes((number,)), data)

    def _deliver(self) -> None:
        """Send the greeting, the output, the status; then keep the socket for a while."""
        session, personality = self.session, self.personality
        with contextlib.suppress(Gone):
            if personality.session_info == "first":
                self._send_info()
            if personality.attach_delay_s:
                time.sleep(personality.attach_delay_s)
            for action in self.actions:
                self._act(action)
            session.attach(self._send)
            self._attached.set()
            if personality.session_info == "late":
                self._send_info()
            session.ended.wait()
            assert session.exit_code is not None
            if self.loses_exit:
                raise Gone
            self._send_exit(session.exit_code)
            select.select([], [], [], personality.hold_after_exit_s)
            self.socket.close(1000)
        self._attached.set()
        self.socket.wire.close()

    def _act(self, action: tuple[str, Any]) -> None:
        """Do one thing that a sound server would not: raw bytes, a message, a close, a drop."""
        kind, value = action
        if kind == "raw":
            self.socket.send_raw(value)
        elif kind == "message":
            self.socket.send(BINARY, value)
        elif kind == "text":
            self.socket.send(TEXT, value)
        elif kind == "close":
            self.socket.close(value, "fault")
        elif kind == "drop":
            self.socket.wire.close()
            raise Gone

    def _send_info(self) -> None:
        session = self.session
        is_number = self.personality.session_info_id_type == "int"
        identity = session.id if is_number else str(session.id)
        info = {
            "type": "session_info",
            "session_id": identity,
            "command": session.argv[0],
            "created": int(session.created),
            "cols": 0,
            "rows": 0,
            "is_owner": True,
            "tty": session.tty,
        }
        self.socket.send(TEXT, json.dumps(info).encode())

    def _send_exit(self, code: int) -> None:
        form = "json" if self.session.tty else self.personality.exit_form
        if form == "json":
            self.socket.send(TEXT, json.dumps({"type": "exit", "exit_code": code}).encode())
        else:
            size = 4 if form == "be32" else 1
            self.socket.send(BINARY, b"\3" + (code & 0xFF).to_bytes(size, "big"))
