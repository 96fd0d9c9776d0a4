"""Run the suite, a part of it in each of several processes.

  python tests/run.py [options of pytest]

Most tests wait most of the time, for a sprite or for a limit, so there are three parts for
each core. What a part says is shown when it is done; the exit status is the worst.
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
    parts = []
    for number in range(count):
        output = tempfile.TemporaryFile()  # noqa: SIM115 (closed when it has been shown)
        argv = [sys.executable, "-m", "pytest", "-q", f"--part={number}/{count}", *sys.argv[1:]]
        process = subprocess.Popen(argv, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        parts.append((process, output))
    worst, totals = 0, Counter[str]()
    for process, output in parts:
        worst = max(worst, abs(process.wait()))
        output.seek(0)
        text = output.read().decode(errors="replace")
        output.close()
        print(text, flush=True)
        for number, word in re.findall(r"(\d+) (\w+)(?=,| in )", text.strip().rpartition("\n")[2]):
            totals[word] += int(number)
    del totals["deselected"]
    told = ", ".join(f"{number} {word}" for word, number in sorted(totals.items()))
    print(f"in all: {told}; {time.monotonic() - began:.0f} s in {count} parts")
    return worst


if __name__ == "__main__":
    sys.exit(main())
