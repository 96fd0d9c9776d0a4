"""Run the suite in several processes, each of which takes the next test that is left.

  python tests/run.py [options of pytest]

Most tests wait most of the time, for a sprite or for a limit, so there are three processes for
each core, and the tests are mixed: those of one file all wait, or all work. A line every ten
seconds tells how far they are; what each process says is shown at the end. The exit status is the
worst. Their files are in memory where there is room: a test makes ten folders, and on some disks
that takes a tenth of its time.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MEMORY = Path("/dev/shm")
ROOM_BYTES = 4 << 30  # four times what the tests leave behind
TELL_S = 10.0


def memory() -> Path | None:
    """Return a folder in memory that has room, and in which programs may be run."""
    if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK):
        return None
    place = os.statvfs(MEMORY)
    has_room = place.f_bavail * place.f_frsize >= ROOM_BYTES
    return MEMORY if has_room and not place.f_flag & os.ST_NOEXEC else None


def collect(options: list[str]) -> str:
    """Return how many tests there are; what they are compiled to is kept for all processes.

    To compile them is a twentieth of all work.
    """
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    argv = [sys.executable, "-m", "pytest", "-q", "--collect-only", *options]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True)
    found = re.search(r"^(\d+)(?:/\d+)? tests? collected", done.stdout, re.M)
    return found[1] if found else "?"


def watch(processes: list[subprocess.Popen[bytes]], results: Path, total: str) -> None:
    """Wait for all, and tell now and then how far they are."""
    began = time.monotonic()
    for process in processes:
        while True:
            try:
                process.wait(TELL_S)
                break
            except subprocess.TimeoutExpired:
                done = results.read_bytes() if results.exists() else b""
                failed = f", {done.count(b'F')} failed" if b"F" in done else ""
                said = f"{len(done)} of {total} tests done{failed}"
                print(f"{said}; {time.monotonic() - began:.0f} s", flush=True)


def main() -> int:
    count = 3 * (os.cpu_count() or 1)
    began = time.monotonic()
    print("collecting the tests", flush=True)
    total = collect(sys.argv[1:])
    running = []
    # each has a folder of its own: in the usual one they would clear up in each other's way
    place = memory()
    with tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)  # an emulated sprite has a user of its own
        env = os.environ | ({"TMPDIR": folder} if place else {})
        for number in range(count):
            output = tempfile.TemporaryFile()  # noqa: SIM115 (closed when it has been shown)
            options = ["-q", "--shuffle=1", f"--turns={folder}/turns"]
            options.append(f"--basetemp={folder}/{number}")
            argv = [sys.executable, "-m", "pytest", *options, *sys.argv[1:]]
            process = subprocess.Popen(
                argv, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT
            )
            running.append((process, output))
        processes = [process for process, _ in running]
        watch(processes, Path(folder, "turns.results"), total)
        worst = max(abs(process.wait()) for process in processes)
    totals = Counter[str]()
    for _, output in running:
        output.seek(0)
        text = output.read().decode(errors="replace")
        output.close()
        print(text, flush=True)
        for number, word in re.findall(r"(\d+) (\w+)(?=,| in )", text.strip().rpartition("\n")[2]):
            totals[word] += int(number)
    del totals["deselected"]
    told = ", ".join(f"{number} {word}" for word, number in sorted(totals.items()))
    print(f"in all: {told}; {time.monotonic() - began:.0f} s in {count} processes")
    return worst


if __name__ == "__main__":
    sys.exit(main())
