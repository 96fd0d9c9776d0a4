"""The program on a pseudo-terminal: keys are typed, and what it writes is drawn on a small screen.

The terminal controls the program, so that ^C and ^D are typed as keys. The screen knows the few
control sequences which the program may use; any other is an error, wherever it comes from.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.program import Thopters
from support.waiting import LIMIT_S, until

if sys.platform == "win32":
    pytest.skip("there are no pseudo-terminals here", allow_module_level=True)

import fcntl
import pty
import termios

CTRL_C, CTRL_D = "\x03", "\x04"
LEAVE = "\x1c"  # Ctrl-\
PROMPT = "$ "
ASLEEP = "dev has paused; the next key wakes it, Ctrl-\\ leaves]"
ENDED = "the session has ended; a key starts a new shell, Ctrl-\\ leaves]"
LOST = "attaching again]"
BACK = re.compile(r"back to it: thopters attach dev ([\w.]+)\]")

# The child makes the terminal its controlling one, and becomes the program
TAKE_TERMINAL = """\
import fcntl, os, sys, termios
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
os.close(fd)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Screen:
    """What a terminal shows of the bytes it is sent, and which colours it was asked for."""

    def __init__(self, data: bytes, columns: int) -> None:
        self.rows: list[list[str]] = [[]]
        self.colours: list[str] = []
        self._columns = columns
        self._row = self._column = 0
        for token in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.", data.decode(), re.S):
            self._take(token)

    def _take(self, token: str) -> None:
        if token == "\r":
            self._column = 0
        elif token == "\n":
            self._row += 1
            if self._row == len(self.rows):
                self.rows.append([])
        elif token == "\x1b[K":
            del self.rows[self._row][self._column :]
        elif token.startswith("\x1b[") and token.endswith("m"):
            self.colours.append(token[2:-1])
        else:
            assert unicodedata.category(token)[0] != "C", f"{token!r} reached the terminal"
            self._put(token)

    def _put(self, char: str) -> None:
        if self._column == self._columns:
            self._take("\r")
            self._take("\n")
        row = self.rows[self._row]
        row.extend(" " * (self._column + 1 - len(row)))
        row[self._column] = char
        self._column += 1

    @property
    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self.rows]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Session:
    """The program on a pseudo-terminal; a thread keeps all that it writes there."""

    def __init__(
        self,
        thopters: Thopters,
        words: tuple[str, ...],
        columns: int,
        *,
        rows: int = 24,
        blocking: bool = True,
        **streams: Any,
    ) -> None:
        self.columns = columns
        self.output = b""
        self._seen = 0
        self._read_until: int | None = None
        self._changed = threading.Condition()
        self._master, self._slave = pty.openpty()
        os.set_blocking(self._slave, blocking)
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.settings_before = termios.tcgetattr(self._slave)
        trampoline = [sys.executable, "-I", "-S", "-c", TAKE_TERMINAL, os.ttyname(self._slave)]
        terminal = {"stdin": self._slave, "stdout": self._slave, "stderr": self._slave}
        places: dict[str, Any] = terminal | streams
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [*trampoline, *thopters.argv, *words],
            **places,
            env={name: value for name, value in thopters.env.items() if name != "COLUMNS"},
            cwd=thopters.home,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 65536):
                with self._changed:
                    self.take(data)
                    self._changed.notify_all()
        except OSError as error:
            self._read_until = error.errno

    def take(self, data: bytes) -> None:
        """Keep what the program has written; the lock is held."""
        self.output += data

    def expect(self, text: str) -> None:
        """Wait until `text` has been written, behind what was waited for before."""
        wanted = text.encode()
        with self._changed:
            come = self._changed.wait_for(lambda: wanted in self.output[self._seen :], LIMIT_S)
            assert come, f"{text!r} has not come: {self.output[self._seen :]!r}"
            self._seen = self.output.index(wanted, self._seen) + len(wanted)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode("utf-8", "surrogateescape"))

    def end(self) -> int:
        """Wait for the program's end, and for all that it wrote; return its exit status."""
        status = self.process.wait(LIMIT_S)
        self.settings_after = termios.tcgetattr(self._slave)
        assert self._reader.is_alive(), f"reading ended early: {self._read_until}"
        self._close_slave()
        self._reader.join(LIMIT_S)
        assert not self._reader.is_alive()
        # how systems say that nobody has the other end any more: Linux by an error
        assert self._read_until in (None, errno.EIO)
        return status

    def _close_slave(self) -> None:
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1

    @property
    def screen(self) -> Screen:
        return Screen(self.output, self.columns)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream:
                stream.close()
        self._close_slave()
        self._reader.join(LIMIT_S)
        os.close(self._master)


Start = Callable[..., Session]


class Tty(Session):
    """The program on a terminal whose window can be resized, and which can be taken away."""

    def __init__(self, thopters: Thopters, *words: str, columns: int = 80, **streams: Any) -> None:
        thopters.env["NO_COLOR"] = "1"
        super().__init__(thopters, words, columns, **streams)

    def __enter__(self) -> Tty:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def resize(self, columns: int, rows: int) -> None:
        """Change the window; the system tells the program by SIGWINCH."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def waiting(self) -> int:
        """Return how many bytes of what was typed nobody has read yet."""
        answer = fcntl.ioctl(self._slave, termios.FIONREAD, struct.pack("i", 0))
        return int(struct.unpack("i", answer)[0])

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def is_raw(self) -> bool:
        return not self.settings()[3] & (termios.ECHO | termios.ICANON | termios.ISIG)

    def is_quiet(self) -> bool:
        """Tell whether keys are not shown and kept, while ^C and Ctrl-\\ are signals."""
        shown = self.settings()[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
        return bool(shown == termios.ISIG)

    def is_blocked(self) -> bool:
        """Tell whether the program waits for something."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "S"

    def type_in_pieces(self, *pieces: str) -> None:
        """Type each piece when the program has read the one before, and waits for something."""
        counts = Path(f"/proc/{self.process.pid}/io")
        for piece in pieces:
            before = int(counts.read_text().split()[1])
            self.type(piece)
            until(lambda: int(counts.read_text().split()[1]) > before, "it is read")  # noqa: B023
            until(self.is_blocked, "it waits")

    def ask(self, command: str, answer: str) -> None:
        """Type a command at the shell's prompt and see its answer and the next prompt."""
        self.type(command + "\r")
        self.expect(answer)
        self.expect(PROMPT)

    def end_restored(self) -> int:
        status = self.end()
        assert self.settings_after == self.settings_before, (status, self.output)
        return status

    @property
    def shown(self) -> bytes:
        """Return the output without the line that says what takes long, on a slow machine."""
        return re.sub(rb"\r([^\r\n]* \(\d+ s\))?\x1b\[K", b"", self.output)

    @property
    def text(self) -> str:
        return self.shown.decode(errors="replace")


def open_shell(thopters: Thopters, **options: Any) -> Tty:
    shell = Tty(thopters, "shell", "dev", "--native", **options)
    try:
        shell.expect(PROMPT)
    except BaseException:
        shell.close()
        raise
    return shell
