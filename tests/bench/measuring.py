"""What the benchmarks measure with: children in a sealed environment, and the platform as one.

What is timed is a child process from its start to its end. The emulator is a child as well, so
that its work is not taken for the measurer's. Times are medians, without each contender's first
run. A ratio is the median of the rounds' ratios, and behind it stands the middle half of them:
where that is wide, the machine was busy with something else.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # for the emulator, and for what stands in support
SEALED_PATH = "/usr/local/bin:/usr/bin:/bin"
SPRITES = 60
ROOM = 1 << 20  # what the program receives into; so do those it is compared with
BLOCK = 1 << 18  # what the emulator sends at once; so does the plain socket


class BenchError(Exception):
    """Why there is nothing to compare."""


class Run(NamedTuple):
    """What one child took: the clock's and the CPU's seconds, and its memory's peak."""

    seconds: float
    cpu: float
    peak_mb: float
    emulator_cpu: float


def anything(first: bytes, size: int) -> bool:
    return True


def nothing(first: bytes, size: int) -> bool:
    return size == 0


class Contender(NamedTuple):
    """A command line; where that is empty, something that is not installed.

    `sound` judges its output by the first bytes and the size, `limit` is how many times as long
    as this one we may take, `env` adds variables, `prepare` is called before each run, and
    `to_first_byte` says that the clock is stopped by the first byte of the output.
    """

    label: str
    argv: list[str]
    sound: Callable[[bytes, int], bool] = nothing
    limit: float | None = None
    env: Mapping[str, str] = MappingProxyType({})
    prepare: Callable[[], object] = lambda: None
    to_first_byte: bool = False


class Row(NamedTuple):
    """A line of the table; `kept` tells whether the target is, None where there is none."""

    what: str
    ours: str
    against: str = ""
    theirs: str = ""
    ratio: str = ""
    target: str = ""
    kept: bool | None = None


# --- children ---------------------------------------------------------------------------


class Bench:
    """Starts children in a sealed environment, and times them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {"HOME": str(home), "PATH": SEALED_PATH, "LANG": "C.UTF-8", "COLUMNS": "80"}
        self.emulator_cpu: Callable[[], float] = lambda: 0.0
        self.bare_python = str(home / "bare" / "bin" / "python")

    def make_bare_python(self) -> None:
        """Make a Python without packages, whatever the one that runs this has."""
        argv = [sys.executable, "-m", "venv", "--without-pip", str(self.home / "bare")]
        self.check(Contender("venv", argv, anything))

    def use(self, platform: Platform) -> None:
        self.env |= {"SPRITES_API_URL": platform.url, "SPRITE_TOKEN": platform.token}
        self.emulator_cpu = platform.cpu

    def start(self, contender: Contender, stdout: int) -> subprocess.Popen[bytes]:
        with open(self.home / "errors", "wb") as errors:
            return subprocess.Popen(
                contender.argv,
                env={**self.env, **contender.env},
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=errors,
                bufsize=0,
            )

    def failed(self, contender: Contender, how: str) -> BenchError:
        errors = (self.home / "errors").read_text(errors="replace")
        return BenchError(f"{contender.label}: {how}\n{errors}".rstrip())

    def check(self, contender: Contender) -> bytes:
        """Run it untimed, which warms the caches up, and return the start of a sound output."""
        first, size = b"", 0
        contender.prepare()
        process = self.start(contender, subprocess.PIPE)
        assert process.stdout
        with process.stdout:
            while data := process.stdout.read(ROOM):
                size += len(data)
                first += data[: ROOM - len(first)]
        code = process.wait()
        if code or not contender.sound(first, size):
            raise self.failed(contender, f"exit status {code}, {size} bytes of output")
        return first

    def time(self, contender: Contender) -> Run:
        contender.prepare()
        before = self.emulator_cpu()
        started = time.perf_counter()
        where = subprocess.PIPE if contender.to_first_byte else subprocess.DEVNULL
        process = self.start(contender, where)
        seconds = 0.0
        if process.stdout:
            with process.stdout:
                process.stdout.read(1)
                seconds = time.perf_counter() - started
                while process.stdout.read(ROOM):
                    pass
        _, status, used = os.wait4(process.pid, 0)
        seconds = seconds or time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise self.failed(contender, f"exit status {process.returncode}")
        # macOS counts in bytes. On Linux our own size is the least that a child can show
        peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        cpu = used.ru_utime + used.ru_stime
        return Run(seconds, cpu, peak / 1e6, self.emulator_cpu() - before)

    def race(self, contenders: Sequence[Contender], rounds: int) -> list[list[Run]]:
        """Return each one's runs; they take turns, so what disturbs one disturbs the others."""
        for contender in contenders:
            self.check(contender)
        turns = [[self.time(contender) for contender in contenders] for _ in range(rounds)]
        return [list(runs) for runs in zip(*turns, strict=True)]


class Platform:
    """The emulator in a child process, and a plain socket beside it that only sends."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        told = self._ask(b"")
        self.url: str = told["url"]
        self.token: str = told["token"]
        self.api_port: int = told["api_port"]
        self.port: int = told["port"]  # of the plain socket

    def _ask(self, line: bytes) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(line)
        answer = self._process.stdout.readline()
        if not answer:
            raise BenchError(f"the emulator ended with status {self._process.wait()}")
        told: dict[str, Any] = json.loads(answer)
        return told

    def cpu(self) -> float:
        """Return the CPU's seconds that the emulator has used so far, without its sprites."""
        return float(self.set()["cpu"])

    def set(self, **settings: float) -> dict[str, Any]:
        """Change fields of the emulator, or of its personality."""
        return self._ask(json.dumps(settings).encode() + b"\n")


@contextlib.contextmanager
def platform(bench: Bench, sprites: int = SPRITES) -> Iterator[Platform]:
    """Run the emulator with some sprites; it ends with its standard input, so never after us."""
    kept = {name: os.environ[name] for name in ("TMPDIR",) if name in os.environ}
    process = subprocess.Popen(
        ourselves("", serve, sprites).argv,
        env=bench.env | kept,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,  # ^C is for us; then it tidies up after its sprites
    )
    assert process.stdin and process.stdout
    try:
        yield Platform(process)
    finally:
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def serve(sprites: int) -> int:
    """Be the child that is the platform, until standard input ends."""
    from emulation import Emulator

    with Emulator(idle_s=3600) as emulator, socket.create_server(("127.0.0.1", 0)) as listener:
        for name in ["dev", *(f"bench-{number:03}" for number in range(sprites - 1))]:
            emulator.add_sprite(name)
        threading.Thread(target=serve_plain, args=(listener,), daemon=True).start()
        told = {
            "url": emulator.url,
            "token": emulator.token,
            "api_port": urlsplit(emulator.url).port,
            "port": listener.getsockname()[1],
        }
        print(json.dumps(told), flush=True)
        for line in sys.stdin:
            for name, value in json.loads(line).items():
                place = emulator if hasattr(emulator, name) else emulator.personality
                setattr(place, name, value)
            print(json.dumps({"cpu": time.process_time()}), flush=True)
    return 0


def serve_plain(listener: socket.socket) -> None:
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=obey, args=(sock,), daemon=True).start()


def obey(sock: socket.socket) -> None:
    """Do what the connection's first line says: `send N`, `take N`, or `echo`."""
    room, block = bytearray(ROOM), memoryview(bytes(BLOCK))
    with sock, sock.makefile("rb", 0) as lines, contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        word, _, number = lines.readline().decode().strip().partition(" ")
        left = int(number or 0)
        while word == "send" and left:
            sock.sendall(block[:left])
            left -= min(left, BLOCK)
        if word == "take":
            receive(sock, left)
            sock.sendall(b"k")
        while word == "echo" and (count := sock.recv_into(room)):
            sock.sendall(memoryview(room)[:count])


def receive(sock: socket.socket, size: int) -> int:
    """Receive at least `size` bytes into the same room, and do nothing with them."""
    room = bytearray(ROOM)
    while size > 0:
        count = sock.recv_into(room)
        if not count:
            print(f"{size} bytes are missing", file=sys.stderr)
            return 1
        size -= count
    return 0


def receive_plain(port: int, size: int) -> int:
    """Be the child that receives from the plain socket."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"send %d\n" % size)
        return receive(sock, size)


def send_plain(port: int, size: int) -> int:
    """Be the child that sends to the plain socket, until all has been received."""
    block = memoryview(bytes(BLOCK))
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"take %d\n" % size)
        left = size
        while left:
            sock.sendall(block[:left])
            left -= min(left, BLOCK)
        return receive(sock, 1)


def ping_plain(port: int, count: int) -> int:
    """Be the child that has bytes come back, one after the other."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"echo\n")
        for _ in range(count):
            sock.sendall(b"x")
            if not sock.recv(1):
                return 1
    return 0


def receive_frames(size: int) -> int:
    """Be the child that has a command print so many bytes, and never looks at what comes.

    The command waits for a line, since what it prints before it has a client can be lost.
    """
    address = urlsplit(os.environ["SPRITES_API_URL"])
    words = ("bash", "-c", f"read; exec head -c {size} /dev/zero")
    query = urlencode([*(("cmd", word) for word in words), ("path", "bash"), ("stdin", "true")])
    head = (
        f"GET /v1/sprites/dev/exec?{query} HTTP/1.1\r\n"
        f"Host: {address.netloc}\r\n"
        f"Authorization: Bearer {os.environ['SPRITE_TOKEN']}\r\n"
        "Connection: Upgrade\r\n"
        "Upgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    line = b"\x82\x82\0\0\0\0" + b"\0\n"  # a binary message for stdin, masked with zeros
    with socket.create_connection((address.hostname or "", address.port or 80)) as sock:
        sock.sendall(head.encode() + line)
        return receive(sock, size)


# --- contenders and rows ------------------------------------------------------------------


def python(label: str, source: str) -> Contender:
    return Contender(label, [sys.executable, "-c", source])


def ourselves(label: str, child: Callable[..., int], *args: int) -> Contender:
    return Contender(label, [sys.executable, __file__, child.__name__, *map(str, args)])


def median_of(field: str, runs: Sequence[Run]) -> float:
    return float(statistics.median(getattr(run, field) for run in runs))


def ratios(ours: Sequence[Run], theirs: Sequence[Run]) -> list[float]:
    """Return for each round how many times as long we took."""
    return [own.seconds / other.seconds for own, other in zip(ours, theirs, strict=True)]


def time_text(runs: Sequence[Run]) -> str:
    seconds = median_of("seconds", runs)
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def compared(what: str, ours: Sequence[Run], other: Contender, theirs: Sequence[Run]) -> Row:
    low, ratio, high = statistics.quantiles(ratios(ours, theirs), n=4, method="inclusive")
    text = f"{ratio:.3g} ({low:.3g} to {high:.3g})"
    row = Row(what, time_text(ours), other.label, time_text(theirs), text)
    if other.limit is None:
        return row
    return row._replace(target=f"<= {other.limit:.3g}", kept=ratio <= other.limit)


def compare(
    bench: Bench, rounds: int, ours: Contender, others: Sequence[Contender]
) -> tuple[list[Row], list[list[Run]]]:
    """Race ours against those that are there; return a row for each, and all the runs."""
    there = [other for other in others if other.argv]
    runs = bench.race([ours, *there], rounds)
    rows = []
    for other in others:
        if other in there:
            rows.append(compared(ours.label, runs[0], other, runs[1 + there.index(other)]))
        else:
            rows.append(Row(ours.label, time_text(runs[0]), other.label, "not installed"))
    return rows, runs


HEADER = Row("what", "ours", "against", "theirs", "ours / theirs", "target")


def print_table(rows: Sequence[Row]) -> None:
    verdicts = {None: "", True: "ok", False: "MISSED"}
    cells = [(*row[:-1], verdicts[row.kept]) for row in (HEADER, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())


def rate_row(what: str, runs: Sequence[Run], size: int) -> Row:
    return Row(f"{what}: rate", f"{size / 1e6 / median_of('seconds', runs):.0f} MB/s")


if __name__ == "__main__":
    roles = (serve, receive_plain, receive_frames, send_plain, ping_plain)
    role = next(role for role in roles if role.__name__ == sys.argv[1])
    sys.exit(role(*map(int, sys.argv[2:])))
