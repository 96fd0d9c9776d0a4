"""The benchmarks of detached commands: their start, what they print, and what is asked of them."""

from __future__ import annotations

import contextlib
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path

from connections import flat_row
from measuring import Bench, Contender, Row, anything, compare, nothing, rate_row

START_TARGET = 1.2
RECORD_TARGET = 100.0  # MB/s
LOGS_TARGET = 2.0
SESSIONS_TARGET = 1.5
RECORDS = 50
KEPT_BYTES = 100_000_000

# Copies of a record, for a sprite to have many
COPY = """\
cd ~/.thopters/jobs && for n in $(seq 10 %d); do cp -r "$1" "00000000$n"; done
"""


def start(bench: Bench, program: list[str], rounds: int) -> list[Row]:
    """Return the row of a start; half a second of it is the look whether the command runs."""
    words = [*program, "exec", "dev"]
    ours = Contender("exec -d dev -- sleep 1", [*words, "-d", "--", "sleep", "1"], anything)
    plain = Contender("exec -t dev -- sleep 0.5", [*words, "-t", "--", "sleep", "0.5"], nothing)
    return compare(bench, rounds, ours, [plain._replace(limit=START_TARGET)])[0]


class Recorders:
    """Watches the memory of what records, while it is entered; `peak_mb` is the most of one."""

    NAMES = ("script\n", "tee\n", "head\n")

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._done = threading.Event()

    def __enter__(self) -> Recorders:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            for place in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError, IndexError):
                    if (place / "comm").read_text() in self.NAMES:
                        text = (place / "status").read_text()
                        size = int(text.partition("VmHWM:")[2].split()[0])
                        self.peak_mb = max(self.peak_mb, size / 1000)


def recorded(bench: Bench, program: list[str], size: int) -> Iterator[Row]:
    """Yield the rows of a command that prints `size` bytes: rate and memory in the sprite."""
    peaks = []
    for count in (size // 10, size):
        script = f"head -c {count} /dev/zero | tr '\\0' x"
        # it holds its sprite, so `wait` learns of its end at once
        begin = shlex.join(
            [*program, "exec", "dev", "-d", "--hold", "--", "sh", "-c", f"sleep 1; {script}"]
        )
        wait = shlex.join([*program, "wait", "dev"])
        prepare = Contender("exec -d", ["sh", "-c", begin], anything)
        label = f"{count / 1e6:.0f} MB recorded"
        ours = Contender(label, ["sh", "-c", f"{wait} 2> /dev/null"], nothing)
        with Recorders() as recorders:
            bench.check(prepare)
            run = bench.time(ours)
        peaks.append(recorders.peak_mb)
    rate = size / 1e6 / run.seconds
    target = f">= {RECORD_TARGET:.0f}"
    yield rate_row(label, [run], size)._replace(target=target, kept=rate >= RECORD_TARGET)
    yield flat_row(label, *peaks)


def asked(bench: Bench, program: list[str], rounds: int, few: int) -> Iterator[Row]:
    """Yield the rows of `logs` and of `sessions`."""

    def run(name: str, *words: str) -> Contender:
        return Contender(" ".join(words), [*program, "exec", name, "--", *words], anything)

    def all_bytes(first: bytes, size: int) -> bool:
        return size >= KEPT_BYTES

    find = "echo ~/.thopters/jobs/*/output"
    bench.check(run("dev", "sh", "-c", "rm -rf ~/.thopters/jobs"))
    flood = f"head -c {KEPT_BYTES} /dev/zero | tr '\\0' x; sleep 1"
    identity = start_one(bench, program, "dev", flood)
    path = bench.check(run("dev", "sh", "-c", find)).decode().strip()
    ours = Contender("logs of 100 MB", [*program, "logs", "dev", identity], all_bytes)
    plain = run("dev", "cat", path)._replace(label="exec cat", sound=all_bytes, limit=LOGS_TARGET)
    yield from compare(bench, few, ours, [plain])[0]
    start_one(bench, program, "bench-000", "sleep 1")
    copied = start_one(bench, program, "bench-001", "sleep 1")
    script = COPY % (RECORDS + 8)
    bench.check(run("bench-001", "sh", "-c", script, "sh", copied))
    many, single = (
        Contender(f"sessions --all of {count}", [*program, "sessions", name, "--all"], anything)
        for name, count in (("bench-001", RECORDS), ("bench-000", 1))
    )
    yield from compare(bench, rounds, many, [single._replace(limit=SESSIONS_TARGET)])[0]


def start_one(bench: Bench, program: list[str], name: str, script: str) -> str:
    """Run a detached command to its end, and return its id."""
    words = [*program, "exec", name, "-d", "--hold", "--", "sh", "-c", script]
    identity = bench.check(Contender("exec -d", words, anything)).decode().strip()
    bench.check(Contender("wait", [*program, "wait", name], nothing))
    return identity


def jobs(bench: Bench, program: list[str], rounds: int, few: int, size: int) -> list[Row]:
    """Return the rows of detached commands; `size` is how many bytes one prints."""
    rows = start(bench, program, rounds)
    rows += recorded(bench, program, size)
    rows += asked(bench, program, rounds, few)
    return rows
