"""How fast the program is, as ratios: each row compares things that ran in turns, in one run.

  python3 tests/bench/bench.py              all rows; exit status 1 if a target is missed
  python3 tests/bench/bench.py --quick      few rounds, and 100 MB instead of 1 GB

It needs nothing but a clone. Two things are compared with where they are found: curl, and the
platform's official SDK, if the Python that runs this has it:

  python3 -m venv sdk && sdk/bin/python -m pip install sprites-py==0.7.2
  sdk/bin/python tests/bench/bench.py

What is timed is a child process from its start to its end, in a sealed environment. The emulator
is a child as well, so that its work is not taken for the measurer's. Times are medians, without
each contender's first run. A ratio is the median of the rounds' ratios, and behind it stands the
middle half of them: where that is wide, the machine was busy with something else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

ROOT = Path(__file__).resolve().parent.parent.parent
SEALED_PATH = "/usr/local/bin:/usr/bin:/bin"
SPRITES = 60  # two pages
ROOM = 1 << 20  # what the program receives into; so do those it is compared with
BLOCK = 1 << 18  # what the emulator sends at once; so does the plain socket
NEAR_THE_CEILING = 1.25  # up to this ratio it is the emulator whose speed is measured

HELP_TARGET = 2.5
SDK_TARGET = 1 / 3
RATE_TARGET = 200.0  # MB/s
MEMORY_TARGET = 64.0  # MB

SDK_VERSION = "import importlib.metadata as m, sprites; print(m.version('sprites-py'))"
SDK_CLIENT = """\
import os
from sprites import SpritesClient
client = SpritesClient(os.environ["SPRITE_TOKEN"], base_url=os.environ["SPRITES_API_URL"])
"""
SDK_LIST = SDK_CLIENT + "print(*(sprite.name for sprite in client.list_all_sprites()), sep='\\n')"
SDK_EXEC = SDK_CLIENT + "raise SystemExit(client.sprite('dev').run('true').returncode)"


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
    as this one we may take, and `env` adds variables.
    """

    label: str
    argv: list[str]
    sound: Callable[[bytes, int], bool] = nothing
    limit: float | None = None
    env: Mapping[str, str] = MappingProxyType({})


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
        before = self.emulator_cpu()
        started = time.perf_counter()
        process = self.start(contender, subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
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
        self.port: int = told["port"]

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
        return float(self._ask(b"cpu\n")["cpu"])


@contextlib.contextmanager
def platform(bench: Bench) -> Iterator[Platform]:
    """Run the emulator; it ends with its standard input, so it cannot outlive us."""
    kept = {name: os.environ[name] for name in ("TMPDIR",) if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve"],
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


def serve() -> int:
    """Be the child that is the platform, until standard input ends."""
    sys.path.insert(0, str(ROOT / "tests"))
    from emulation import Emulator

    with Emulator(idle_s=3600) as emulator, socket.create_server(("127.0.0.1", 0)) as listener:
        for name in ["dev", *(f"bench-{number:02}" for number in range(1, SPRITES))]:
            emulator.add_sprite(name)
        threading.Thread(target=flood, args=(listener,), daemon=True).start()
        told = {"url": emulator.url, "token": emulator.token, "port": listener.getsockname()[1]}
        print(json.dumps(told), flush=True)
        for _ in sys.stdin:
            print(json.dumps({"cpu": time.process_time()}), flush=True)
    return 0


def flood(listener: socket.socket) -> None:
    """Send each connection as many bytes as its first line says."""
    while True:
        sock, _ = listener.accept()
        with sock, sock.makefile("rb") as lines:
            left, block = int(lines.readline()), memoryview(bytes(BLOCK))
            while left:
                sock.sendall(block[:left])
                left -= min(left, BLOCK)


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
        sock.sendall(b"%d\n" % size)
        return receive(sock, size)


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


# --- contenders -------------------------------------------------------------------------


def help_text(first: bytes, size: int) -> bool:
    return b"\ncommands:\n" in first


def all_lines(first: bytes, size: int) -> bool:
    return len(first.splitlines()) == SPRITES


def all_sprites(first: bytes, size: int) -> bool:
    return first.count(b'"id"') == SPRITES


def status_0(first: bytes, size: int) -> bool:
    return first == b"\3\0"


def python(label: str, source: str) -> Contender:
    return Contender(label, [sys.executable, "-c", source])


def ourselves(label: str, *args: object) -> Contender:
    return Contender(label, [sys.executable, __file__, *map(str, args)])


class Curl:
    """curl with the requests that the program makes."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.program = shutil.which("curl", path=SEALED_PATH)

    def version(self, bench: Bench) -> str:
        if not self.program:
            return "not installed"
        told = bench.check(Contender("curl", [self.program, "--version"], anything))
        return told.decode().split()[1]

    def ask(self, paths: list[str], sound: Callable[[bytes, int], bool], *more: str) -> Contender:
        """Return one curl for these paths: with several, it keeps its connection."""
        if not self.program:
            return Contender("curl", [])
        words = ["-q", "-sS", "--fail", "-H", f"Authorization: Bearer {self.platform.token}"]
        urls = [self.platform.url + path for path in paths]
        return Contender("curl", [self.program, *words, *more, *urls], sound)

    def list(self, bench: Bench) -> Contender:
        """Return the one for all pages."""
        path = "/v1/sprites?max_results=50&bulk_load=true"
        first = self.ask([path], anything)
        if not first.argv:
            return first
        token = json.loads(bench.check(first))["next_continuation_token"]
        return self.ask([path, f"{path}&continuation_token={token}"], all_sprites)

    def exec(self) -> Contender:
        return self.ask(["/v1/sprites/dev/exec?cmd=true"], status_0, "--data", "")._replace(
            label="curl, by POST"
        )


class Sdk:
    """The official SDK in a Python of its own, if this Python has it."""

    def __init__(self, bench: Bench) -> None:
        probe = python("sprites-py", SDK_VERSION)._replace(sound=anything)
        try:
            self.version = bench.check(probe).decode().strip()
        except BenchError:
            self.version = "not installed"

    def run(self, source: str) -> Contender:
        if self.version == "not installed":
            return Contender("sprites-py", [])
        return python("sprites-py", source)

    def list(self) -> Contender:
        return self.run(SDK_LIST)._replace(sound=all_lines, limit=SDK_TARGET)

    def exec(self) -> Contender:
        return self.run(SDK_EXEC)


# --- rows -------------------------------------------------------------------------------


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


def compare_output(
    bench: Bench, platform: Platform, program: list[str], size: int, rounds: int
) -> tuple[list[Row], list[str]]:
    """Return the rows of a command that prints `size` bytes, and what to know about them."""
    what = f"{size / 1e6:.0f} MB of output"
    argv = [*program, "exec", "dev", "--", "head", "-c", str(size), "/dev/zero"]
    ours = Contender(what, argv, lambda first, count: count == size)
    plain = ourselves("a plain socket", "--receive-plain", platform.port, "--bytes", size)
    unread = ourselves("the same, not looked at", "--receive-frames", "--bytes", size)
    rows, (own, _, ceiling) = compare(bench, rounds, ours, [plain, unread])
    rate, most = (size / 1e6 / median_of("seconds", runs) for runs in (own, ceiling))
    peak = max(run.peak_mb for run in own)
    rows += [
        Row(
            f"{what}: rate",
            f"{rate:.0f} MB/s",
            target=f">= {RATE_TARGET:.0f}",
            kept=rate >= RATE_TARGET,
        ),
        Row(
            f"{what}: memory",
            f"{peak:.0f} MB",
            target=f"<= {MEMORY_TARGET:.0f}",
            kept=peak <= MEMORY_TARGET,
        ),
    ]
    cpu, emulator_cpu = median_of("cpu", own), median_of("emulator_cpu", own)
    notes = [f"CPU for {what}: ours {cpu:.2f} s, the emulator's {emulator_cpu:.2f} s"]
    if statistics.median(ratios(own, ceiling)) <= NEAR_THE_CEILING:
        notes.append(
            f"The emulator limits the rate: a client that looks at nothing gets {most:.0f} MB/s"
        )
    return rows, notes


HEADER = Row("what", "ours", "against", "theirs", "ours / theirs", "target")


def print_table(rows: Sequence[Row]) -> None:
    verdicts = {None: "", True: "ok", False: "MISSED"}
    cells = [(*row[:-1], verdicts[row.kept]) for row in (HEADER, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())


# --- main -------------------------------------------------------------------------------


def build(bench: Bench) -> list[str]:
    """Return the command line of a freshly built archive."""
    path = bench.home / "thopters.pyz"
    argv = [sys.executable, str(ROOT / "build_pyz.py"), "--output", str(path)]
    bench.check(Contender("build_pyz.py", argv, anything))
    return [sys.executable, str(path)]


def commands(bench: Bench, program: list[str], curl: Curl, sdk: Sdk) -> list[list[Contender]]:
    """Return the races whose time is all there is to them; ours comes first."""
    plain = python("import argparse", "import argparse")
    in_time = plain._replace(limit=HELP_TARGET)
    first = {"XDG_CACHE_HOME": str(bench.home / "none" / "none")}  # nowhere to keep bytecode
    shown = Contender("--help", [*program, "--help"], help_text)
    listed = Contender("ls", [*program, "ls"], all_lines)
    ran = Contender("exec dev -- true", [*program, "exec", "dev", "--", "true"])
    bench.check(ran)  # so the sprite is awake when curl and the SDK come, which do not wait for it
    return [
        [shown, in_time],
        [shown._replace(label="--help, not compiled", env=first), plain],
        [listed, curl.list(bench), sdk.list()],
        [ran, curl.exec(), sdk.exec()],
    ]


def measure(bench: Bench, platform: Platform, rounds: int, size: int) -> list[Row]:
    """Run everything, print the table, and return it."""
    bench.use(platform)
    program, curl, sdk = build(bench), Curl(platform), Sdk(bench)
    rows: list[Row] = []
    for ours, *others in commands(bench, program, curl, sdk):
        rows += compare(bench, rounds, ours, others)[0]
    # so many bytes take long enough to need fewer rounds
    more, notes = compare_output(bench, platform, program, size, max(3, rounds // 3))
    rows += more
    version = sys.version.split()[0]
    print(f"Python {version} on {sys.platform}, {os.cpu_count()} CPUs, {rounds} rounds")
    print(f"curl: {curl.version(bench)}; sprites-py: {sdk.version}\n")
    print_table(rows)
    print("", *notes, sep="\n")
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], epilog="exit status 1: a target is missed"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds, and 100 MB")
    parser.add_argument("--rounds", type=int, metavar="N", help="default: 15, quick: 5")
    parser.add_argument("--bytes", type=int, metavar="N", help="default: 1 GB, quick: 100 MB")
    for name in ("--serve", "--receive-frames"):  # what our own children are
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--receive-plain", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.rounds = args.rounds or (5 if args.quick else 15)
    args.bytes = args.bytes or (10**8 if args.quick else 10**9)
    if args.rounds < 2 or args.bytes < 1:
        parser.error("at least 2 rounds and 1 byte")
    return args


def main() -> int:
    args = parse()
    if args.serve:
        return serve()
    if args.receive_plain:
        return receive_plain(args.receive_plain, args.bytes)
    if args.receive_frames:
        return receive_frames(args.bytes)
    with tempfile.TemporaryDirectory(prefix="thopters-bench-") as folder:
        bench = Bench(Path(folder))
        try:
            with platform(bench) as emulator:
                rows = measure(bench, emulator, args.rounds, args.bytes)
        except (BenchError, OSError) as error:
            print(f"bench: error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
    return 1 if any(row.kept is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
