"""The benchmarks of what stays open: terminals, forwarded ports, and copies."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from measuring import (
    Bench,
    Contender,
    Platform,
    Row,
    anything,
    compare,
    median_of,
    ourselves,
    ping_plain,
    rate_row,
    receive_plain,
    send_plain,
)

ROUND_TRIPS = 2_000
FLAT = 1.25  # so many times the memory at most, for ten times the bytes

# The official SDK for Python forwards no ports, so the library that it is built on does
FORWARDER = """\
import asyncio, json, os, sys
from websockets.asyncio.client import connect
local, remote = map(int, sys.argv[1:])
url = os.environ["SPRITES_API_URL"].replace("http", "ws", 1) + "/v1/sprites/dev/proxy"
headers = {"Authorization": "Bearer " + os.environ["SPRITE_TOKEN"]}
async def forward(reader, writer):
    options = {"additional_headers": headers, "max_size": None, "compression": None}
    async with connect(url, **options) as websocket:
        await websocket.send(json.dumps({"host": "localhost", "port": remote}))
        await websocket.recv()
        async def send():
            while data := await reader.read(1 << 18):
                await websocket.send(data)
        sending = asyncio.create_task(send())
        async for data in websocket:
            writer.write(data)
            await writer.drain()
        sending.cancel()
    writer.close()
async def main():
    async with await asyncio.start_server(forward, "127.0.0.1", local) as server:
        await server.serve_forever()
asyncio.run(main())
"""


def flat_row(what: str, small_mb: float, large_mb: float) -> Row:
    """Return the row that says whether memory grows with the size of what is passed on."""
    ratio = large_mb / small_mb
    return Row(f"{what}: memory", f"{large_mb:.0f} MB", "a tenth of it", f"{small_mb:.0f} MB",
               f"{ratio:.3g}", f"<= {FLAT}", ratio <= FLAT)  # fmt: skip


# --- terminal ---------------------------------------------------------------------------


def terminal(bench: Bench, program: list[str], rounds: int) -> list[Row]:
    """Return the row of a command on a terminal: the time until its first byte is here."""
    ran, plain = (
        Contender(" ".join(words), [*program, *words], anything, to_first_byte=True)
        for words in (["exec", "-t", "dev", "--", "echo"], ["exec", "dev", "--", "echo"])
    )
    return compare(bench, rounds, ran._replace(label=f"{ran.label}: first byte"), [plain])[0]


# --- ports ------------------------------------------------------------------------------


@contextlib.contextmanager
def forwarding(bench: Bench, argv: list[str], remote: int) -> Iterator[tuple[int, int]]:
    """Run a forwarder of a free port; yield that and the process's id. `{}` stands for it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        local = server.getsockname()[1]
    words = [word.replace("{local}", str(local)).replace("{remote}", str(remote)) for word in argv]
    with open(bench.home / "errors", "wb") as errors:
        process = subprocess.Popen(
            words, env=bench.env, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
        )
    try:
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", local)):
                break
            time.sleep(0.02)
        else:
            raise bench.failed(Contender(words[-1], words), "it does not listen")
        yield local, process.pid
    finally:
        process.terminate()
        process.wait()


def peak_mb(pid: int) -> float:
    """Return the most memory that a process has had so far; 0 where that can't be seen."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def ports(
    bench: Bench, platform: Platform, program: list[str], rounds: int, size: int
) -> list[Row]:
    """Return the rows of a forwarded port, against the port itself and another forwarder."""
    ours = [*program, "proxy", "dev", "{local}:{remote}", "--native"]
    library = [sys.executable, "-c", FORWARDER, "{local}", "{remote}"]
    has_library = subprocess.run([sys.executable, "-c", "import websockets"], capture_output=True)
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        own, pid = stack.enter_context(forwarding(bench, ours, platform.port))
        ways = [("the port itself", platform.port)]
        if has_library.returncode == 0:
            there, _ = stack.enter_context(forwarding(bench, library, platform.port))
            ways.append(("websockets", there))
        small = 0.0
        for child, what in ((receive_plain, "down"), (send_plain, "up")):
            bench.check(ourselves("", child, own, size // 10))
            small = small or peak_mb(pid)
            label = f"{size / 1e6:.0f} MB {what} a forwarded port"
            others = [ourselves(name, child, port, size) for name, port in ways]
            more, runs = compare(bench, rounds, ourselves(label, child, own, size), others)
            rows += [*more, rate_row(label, runs[0], size)]
        if small:
            rows.append(flat_row("forwarding", small, peak_mb(pid)))
        label = f"{ROUND_TRIPS} round trips through it"
        others = [ourselves(name, ping_plain, port, ROUND_TRIPS) for name, port in ways]
        trips = ourselves(label, ping_plain, own, ROUND_TRIPS)
        more, runs = compare(bench, rounds, trips, others)
        added = (median_of("seconds", runs[0]) - median_of("seconds", runs[1])) / ROUND_TRIPS
        rows += [*more, Row("a round trip: what is added", f"{added * 1000:.2f} ms")]
    return rows


# --- copies -----------------------------------------------------------------------------


def shell(label: str, line: str) -> Contender:
    return Contender(label, ["sh", "-c", f"set -e; {line}"], anything)


def furnish(home: Path, size: int, count: int) -> None:
    """Make a folder with a large file, one with a tenth of it, and one with many small files."""
    for name, left in (("big", size), ("tenth", size // 10)):
        (home / name).mkdir()
        with open(home / name / "file", "wb") as file:
            while left:
                left -= file.write(os.urandom(min(left, 1 << 20)))
    (home / "many").mkdir()
    for number in range(count):
        (home / "many" / str(number)).write_bytes(os.urandom(1024))


def copies(bench: Bench, program: list[str], rounds: int, size: int, count: int) -> list[Row]:
    """Return the rows of copying one large and many small files, against tar through a pipe."""
    furnish(bench.home, size, count)
    run, clear = shlex.join(program), "rm -rf here there; mkdir here there"
    clear_both = shell("rm", f"{clear}; {run} exec dev -- sh -c {shlex.quote(clear)}")
    clear_here = shell("rm", clear)
    rows: list[Row] = []
    peaks: dict[str, float] = {}
    for name, what in (("big", f"{size / 1e6:.0f} MB"), ("many", f"{count} files of 1 KiB")):
        ways = (
            (
                ("in", clear_both, ["cp", name, "dev:here"]),
                f"tar -cf - {name} | {run} exec -i dev -- tar -xf - -C there",
            ),
            (
                ("out", clear_here, ["cp", f"dev:here/{name}", "here"]),
                f"{run} exec dev -- tar -cf - -C here {name} | tar -xf - -C there",
            ),
        )
        for (way, clearing, words), line in ways:
            ours = Contender(f"{what} {way}", [*program, *words])
            raced = [
                contender._replace(prepare=functools.partial(bench.check, clearing))
                for contender in (ours, shell(f"tar by exec, {way}", line))
            ]
            more, runs = compare(bench, rounds, raced[0], raced[1:])
            rows += more
            bench.check(raced[0])  # what was copied is there for what follows
            if name == "big":
                peaks[way] = max(run.peak_mb for run in runs[0])
                rows.append(rate_row(ours.label, runs[0], size))
        bench.check(shell("diff", f"diff -r {name} here/{name}"))  # in and out again
    for way, words in (("in", ["cp", "tenth", "dev:"]), ("out", ["cp", "dev:tenth", "there"])):
        tenth = bench.time(Contender(f"a tenth {way}", [*program, *words]))
        rows.append(flat_row(f"{size / 1e6:.0f} MB {way}", tenth.peak_mb, peaks[way]))
    return rows
