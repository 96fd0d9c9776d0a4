"""Signals that come where Python drops exceptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from support.program import ROOT


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_is_not_lost_where_python_drops_exceptions() -> None:
    script = (
        "import os, signal, time, thopters\n"
        "class Dropped:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(0)\n"
        "thopters.StopSignals().catch()\n"
        "try:\n"
        "    Dropped()\n"
        "    print('dropped', flush=True)\n"
        "    time.sleep(60)\n"
        "except thopters.Interrupted as interrupted:\n"
        "    print(interrupted.signum)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=50
    )
    assert (done.stdout, done.stderr) == (f"dropped\n{signal.SIGTERM:d}\n", "")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    "happens",
    [
        "class Dropped:\n    def __del__(self):\n        send()\nDropped()",
        "try:\n    send()\nfinally:\n    threading.Lock().release()",
    ],
    ids=["python drops it", "a lock makes it another error"],
)
def test_a_signal_that_gets_lost_ends_the_program_all_the_same(happens: str) -> None:
    script = (
        "import argparse, os, signal, threading, thopters\n"
        "def send():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "class Nothing:\n"
        "    run = staticmethod(lambda app, args: 0)\n"
        "def parse(argv):\n"
        f"    exec({happens!r}, globals())\n"
        "    return Nothing, argparse.Namespace(verbose=False, debug=False)\n"
        "thopters.parse = parse\n"
        "thopters.leave(thopters.main(['list']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=50
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")
    assert done.stderr == "thopters: interrupted\n"
