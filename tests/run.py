"""Run the suite in several processes, each of which takes the next test that is left.

  python tests/run.py [options of pytest]

Most tests wait most of the time, for a sprite or for a limit, so there are three processes for
each core, and the tests are mixed: those of one file all wait, or all work. What one process says
is shown when it is done; the exit status is the worst.
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


def main() -> int:
    count = 3 * (os.cpu_count() or 1)
    began = time.monotonic()
    # to compile the tests is a twentieth of all work: one does it, and keeps it for the others
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    collect = [sys.executable, "-m", "pytest", "-q", "--collect-only", *sys.argv[1:]]
    subprocess.run(collect, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    running = []
    # each has a folder of its own: in the usual one they would clear up in each other's way
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for number in range(count):
            output = tempfile.TemporaryFile()  # noqa: SIM115 (closed when it has been shown)
            options = ["-q", "--shuffle=1", f"--turns={folder}/turns"]
            options.append(f"--basetemp={folder}/{number}")
            argv = [sys.executable, "-m", "pytest", *options, *sys.argv[1:]]
            process = subprocess.Popen(argv, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
            running.append((process, output))
        worst = max(abs(process.wait()) for process, _ in running)
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
