"""How fast the program is, as ratios: each row compares things that ran in turns, in one run.

  python3 tests/bench/bench.py              all rows; exit status 1 if a target is missed
  python3 tests/bench/bench.py --quick      few rounds, and a tenth of the bytes and files
  python3 tests/bench/bench.py --only ROWS  "commands", "terminal", "jobs", "ports", "copies",
                                            "ssh" or "distance" alone

It needs nothing but a clone, and openssl for the distance: TLS, with a round trip of 50 ms before
it (--round-trip MS). Two things are compared with where they are found: curl, and the platform's
official SDK, if the Python that runs this has it:

  python3 -m venv sdk && sdk/bin/python -m pip install sprites-py==0.7.2
  sdk/bin/python tests/bench/bench.py

The program itself runs in a Python that has no packages. How it measures is told in measuring.py,
and what the distance is in distance.py.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import connections
import distance
import jobs
import over_ssh
from measuring import (
    ROOT,
    SEALED_PATH,
    SPRITES,
    Bench,
    BenchError,
    Contender,
    Platform,
    Row,
    anything,
    compare,
    median_of,
    ourselves,
    platform,
    print_table,
    python,
    rate_row,
    ratios,
    receive_frames,
    receive_plain,
)

NEAR_THE_CEILING = 1.25  # up to this ratio it is the emulator whose speed is measured
HELP_TARGET = 2.5
TAB_TARGET = 2.5
SDK_TARGET = 1 / 3
RATE_TARGET = 200.0  # MB/s
MEMORY_TARGET = 64.0  # MB

SDK_VERSION = "import importlib.metadata as m, sprites; print(m.version('sprites-py'))"
SDK_CLIENT = """\
import os
from sprites import SpritesClient
client = SpritesClient(os.environ["SPRITE_TOKEN"], base_url=os.environ["SPRITES_API_URL"])
"""
SDK_LIST = "print(*(sprite.name for sprite in client.list_all_sprites()), sep='\\n')"
SDK_EXEC = "raise SystemExit(client.sprite('dev').run('true').returncode)"


# --- contenders -------------------------------------------------------------------------


def help_text(first: bytes, size: int) -> bool:
    return b"\ncommands:\n" in first


def all_lines(first: bytes, size: int) -> bool:
    return len(first.splitlines()) == SPRITES


def all_sprites(first: bytes, size: int) -> bool:
    return first.count(b'"id"') == SPRITES


def all_names(first: bytes, size: int) -> bool:
    return len(first.split()) == SPRITES


def status_0(first: bytes, size: int) -> bool:
    return first == b"\3\0"


class Curl:
    """curl with the requests that the program makes."""

    def __init__(self, platform: Platform, home: Path) -> None:
        self.platform = platform
        self.bearer = home / "bearer"  # a header in a file, as others can see command lines
        self.bearer.touch(0o600)
        self.bearer.write_text(f"Authorization: Bearer {platform.token}\n")
        self.program = shutil.which("curl", path=SEALED_PATH)

    def version(self, bench: Bench) -> str:
        if not self.program:
            return "not installed"
        told = bench.check(Contender("curl", [self.program, "--version"], anything))
        return told.decode().split()[1]

    def ask(self, path: str, sound: Callable[[bytes, int], bool], *more: str) -> Contender:
        if not self.program:
            return Contender("curl", [])
        words = ["-q", "-sS", "--fail", "-H", f"@{self.bearer}"]
        url = self.platform.url + path
        return Contender("curl", [self.program, *words, *more, url], sound)

    def list(self) -> Contender:
        return self.ask("/v1/sprites?max_results=500", all_sprites)

    def exec(self) -> Contender:
        return self.ask("/v1/sprites/dev/exec?cmd=true", status_0, "--data", "")._replace(
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
        return python("sprites-py", SDK_CLIENT + source)

    def list(self) -> Contender:
        return self.run(SDK_LIST)._replace(sound=all_lines, limit=SDK_TARGET)

    def exec(self) -> Contender:
        return self.run(SDK_EXEC)


# --- rows ------------------------------------------------------------------------------


def compare_output(
    bench: Bench, platform: Platform, program: list[str], rounds: int, size: int
) -> tuple[list[Row], list[str]]:
    """Return the rows of a command that prints `size` bytes, and what to know about them."""
    what = f"{size / 1e6:.0f} MB of output"
    argv = [*program, "exec", "dev", "--", "head", "-c", str(size), "/dev/zero"]
    ours = Contender(what, argv, lambda first, count: count == size)
    plain = ourselves("a plain socket", receive_plain, platform.port, size)
    unread = ourselves("the same, not looked at", receive_frames, size)
    rows, (own, _, ceiling) = compare(bench, rounds, ours, [plain, unread])
    rate, most = (size / 1e6 / median_of("seconds", runs) for runs in (own, ceiling))
    peak = max(run.peak_mb for run in own)
    rows += [
        rate_row(what, own, size)._replace(
            target=f">= {RATE_TARGET:.0f}", kept=rate >= RATE_TARGET
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


# --- main -------------------------------------------------------------------------------


def build(bench: Bench) -> list[str]:
    """Return the command line of a freshly built archive."""
    path = bench.home / "thopters.pyz"
    argv = [sys.executable, str(ROOT / "build_pyz.py"), "--output", str(path)]
    bench.check(Contender("build_pyz.py", argv, anything))
    return [bench.bare_python, str(path)]


def commands(bench: Bench, program: list[str], curl: Curl, sdk: Sdk) -> list[list[Contender]]:
    """Return the races whose time is all there is to them; ours comes first."""
    plain = Contender("import argparse", [bench.bare_python, "-c", "import argparse"])
    in_time = plain._replace(limit=HELP_TARGET)
    first = {"XDG_CACHE_HOME": str(bench.home / "none" / "none")}  # nowhere to keep bytecode
    shown = Contender("--help", [*program, "--help"], help_text)
    listed = Contender("ls", [*program, "ls"], all_lines)
    # the list fills the cache, which is good for a minute
    line = ["--complete", "bash", "thopters shell ", ":="]
    tab = Contender("Tab", [*program, *line], all_names, prepare=lambda: bench.check(listed))
    ran = Contender("exec dev -- true", [*program, "exec", "dev", "--", "true"])
    bench.check(ran)  # so the sprite is awake when curl and the SDK come, which do not wait for it
    return [
        [shown, in_time],
        [shown._replace(label="--help, not compiled", env=first), plain],
        [tab, plain._replace(limit=TAB_TARGET)],
        [listed, curl.list(), sdk.list()],
        [ran, curl.exec(), sdk.exec()],
    ]


def measure(bench: Bench, platform: Platform, args: argparse.Namespace) -> list[Row]:
    """Run everything, print the table, and return it."""
    bench.use(platform)
    program, curl, sdk = build(bench), Curl(platform, bench.home), Sdk(bench)
    rows: list[Row] = []
    notes: list[str] = []
    few = max(3, args.rounds // 3)  # so many bytes take long enough to need fewer rounds
    if args.only in (None, "commands"):
        for ours, *others in commands(bench, program, curl, sdk):
            rows += compare(bench, args.rounds, ours, others)[0]
        more, notes = compare_output(bench, platform, program, few, args.bytes)
        rows += more
    if args.only in (None, "terminal"):
        rows += connections.terminal(bench, program, args.rounds)
    if args.only in (None, "jobs"):
        rows += jobs.jobs(bench, program, args.rounds, few, args.bytes)
    if args.only in (None, "ports"):
        rows += connections.ports(bench, platform, program, few, args.bytes)
    if args.only in (None, "copies"):
        rows += connections.copies(bench, program, few, args.bytes, args.files)
    if args.only in (None, "ssh"):
        rows += over_ssh.over_ssh(bench, program, args.rounds)
    if args.only in (None, "distance"):
        more, told = distance.distance(bench, program, sdk.run, args.rounds, args.round_trip / 1000)
        rows, notes = [*rows, *more], [*notes, *told]
    version = sys.version.split()[0]
    print(f"Python {version} on {sys.platform}, {os.cpu_count()} CPUs, {args.rounds} rounds")
    print(f"curl: {curl.version(bench)}; sprites-py: {sdk.version}\n")
    print_table(rows)
    print("", *notes, verdict(rows), sep="\n")
    return rows


def verdict(rows: list[Row]) -> str:
    missed = [row.what for row in rows if row.kept is False]
    count = sum(row.kept is not None for row in rows)
    return f"MISSED: {', '.join(missed)}" if missed else f"All {count} targets are kept"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], epilog="exit status 1: a target is missed"
    )
    parser.add_argument("--quick", action="store_true", help="few rounds, a tenth of the data")
    parts = ("commands", "terminal", "jobs", "ports", "copies", "ssh", "distance")
    parser.add_argument("--only", choices=parts)
    parser.add_argument("--rounds", type=int, metavar="N", help="default: 15, quick: 5")
    parser.add_argument("--bytes", type=int, metavar="N", help="default: 1 GiB, quick: 100 MB")
    parser.add_argument("--round-trip", type=float, default=50.0, metavar="MS", help="default: 50")
    args = parser.parse_args()
    args.rounds = args.rounds or (5 if args.quick else 15)
    args.bytes = args.bytes or (10**8 if args.quick else 1 << 30)
    args.files = 1_000 if args.quick else 10_000
    if args.rounds < 2 or args.bytes < 10:
        parser.error("at least 2 rounds and 10 bytes")
    return args


def main() -> int:
    args = parse()
    with tempfile.TemporaryDirectory(prefix="thopters-bench-") as folder:
        bench = Bench(Path(folder))
        try:
            bench.make_bare_python()
            with platform(bench) as emulator:
                rows = measure(bench, emulator, args)
        except (BenchError, OSError) as error:
            print(f"bench: error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            return 130
    return 1 if any(row.kept is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
