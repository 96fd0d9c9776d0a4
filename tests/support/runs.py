"""Ways of running the program that sweeps need.

`run_here` runs it in this process: all of it but the last step, which turns what escapes from a
command into the way in which a process ends. `shorten` has the child run with smaller limits.
`play` runs every command once, in an order in which each works.
"""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence

from emulation import Emulator

import thopters as program
from support.program import MODULE, Result, Thopters
from support.units import Terminal


class Done:
    """How a command line ended: its exit status, and what it wrote."""

    def __init__(self, argv: Sequence[str], code: int, out: str, err: str) -> None:
        self.argv = list(argv)
        self.code = code
        self.out = out
        self.err = err

    def __repr__(self) -> str:
        return f"{self.argv!a}: exit {self.code}\n--- stdout\n{self.out!a}\n--- stderr\n{self.err}"


def environ_for(emulator: Emulator, home: str, **more: str) -> dict[str, str]:
    """Return the variables of a user of the emulator; nothing else gets in."""
    base = {"HOME": home, "PATH": "/usr/bin:/bin", "NO_COLOR": "1"}
    return base | {"SPRITES_API_URL": emulator.url, "SPRITE_TOKEN": emulator.token} | more


def run_here(argv: Sequence[str], environ: Mapping[str, str], *, terminal: bool = False) -> Done:
    """Carry out one command line in this process."""
    out, err = (Terminal(), Terminal()) if terminal else (io.StringIO(), io.StringIO())
    console = program.Console(out, err, environ)
    try:
        code = program.run(list(argv), console, environ)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    return Done(argv, code, out.getvalue(), err.getvalue())


START = """\
import os, sys
sys.path.insert(0, sys.argv.pop(1))
import thopters
for pair in sys.argv.pop(1).split():
    name, _, seconds = pair.partition("=")
    assert hasattr(thopters, name)
    setattr(thopters, name, float(seconds))
thopters.leave(thopters.main())
"""


def shorten(thopters: Thopters, **limits_s: float) -> None:
    """Have the child's limits, named by their constants, be as given."""
    pairs = " ".join(f"{name}={seconds}" for name, seconds in limits_s.items())
    thopters.argv = [sys.executable, "-c", START, str(MODULE.parent), pairs]


ODD = "na\u00efve \u2603"
# Every command once, with its exit status, in an order in which each works. {session} is what the
# last --detach has printed, {file} a local file's path.
JOURNEY: list[tuple[list[str], int, bytes | None]] = [
    (["help"], 0, None),
    (["completion", "bash"], 0, None),
    (["setup", "--from-env"], 0, None),
    (["config"], 0, None),
    (["create", "dev", "--no-init"], 0, None),
    (["create", "dev"], 5, None),
    (["init", "dev"], 0, None),
    (["env", "set", "MINE"], 0, b"another value\n"),
    (["env", "list"], 0, None),
    (["env", "push", "d*"], 0, None),
    (["env", "check"], 0, None),
    (["env", "unset", "MINE"], 0, None),
    (["list"], 0, None),
    (["list", "-q"], 0, None),
    (["doctor"], 0, None),
    (["use", "dev"], 0, None),
    (["url", "."], 0, None),
    (["use", "--unset"], 0, None),
    (["url", "dev", "--public"], 0, None),
    (
        ["exec", "dev", "--no-hold", "--", "sh", "-c", "echo x > x; echo 'caf\u00e9 \u2603'"],
        0,
        None,
    ),
    (
        ["exec", "dev", "--detach", "--name", "tests", "--", "sh", "-c", "read line; exit 3", ODD],
        0,
        None,
    ),
    (["sessions", "dev"], 0, None),
    (["wait", "dev", "tests", "--timeout", "0"], 7, None),
    (["attach", "dev", "{session}"], 3, b"a line\n"),
    (["wait", "dev"], 3, None),
    (["logs", "dev", "tests"], 0, None),
    (["sessions", "dev", "--all", "--json"], 0, None),
    (["kill", "dev", "tests", "--forget"], 0, None),
    (["exec", "dev", "--detach", "--", "sleep", "60"], 0, None),
    (["kill", "dev", "{session}"], 0, None),
    (["shell", "dev"], 0, b"exit\n"),
    (["ssh", "--config", "dev"], 0, None),
    (["ssh", "--stdio", "dev"], 255, None),
    (["cp", "{file}", "dev:copied"], 0, None),
    (["cp", "dev:x", "-"], 0, None),
    (["proxy", "dev", "-W", "localhost:1"], 1, None),
    (["checkpoint", "dev", "--comment", "na\u00efve \u2603 \u65e5\u672c"], 0, None),
    (["checkpoints", "dev"], 0, None),
    (["info", "dev"], 0, None),
    (["restore", "dev", "v1", "--yes"], 0, None),
    (["hold", "dev", "--for", "1h"], 0, None),
    (["hold", "dev", "--release"], 0, None),
    (["exec", "dev", "--detach", "--", "sleep", "60"], 0, None),
    (["pause", "dev", "--no-wait", "--force"], 0, None),
    (["resume", "dev"], 0, None),
    (["rename", "dev", "dev2"], 1, None),
    (["destroy", "dev", "--yes"], 0, None),
    (["url", "dev"], 3, None),
]
COMMANDS = {program.find_command(words)[0].name for words, _, _ in JOURNEY}


def play(
    thopters: Thopters, emulator: Emulator, *settings: dict[str, str], session: str = ""
) -> Iterator[tuple[list[str], Result]]:
    """Run the journey, each step with the next of the settings; yield each step's words."""
    emulator.personality.restore_delay_s = 0.05
    file = thopters.home / "caf\u00e9"
    file.write_text("text\n")
    environs = itertools.cycle(settings or ({},))
    for words, code, stdin in JOURNEY:
        argv = [word.format(session=session, file=file) for word in words]
        done = thopters(*argv, stdin=stdin, env={"OPENAI_API_KEY": "a key"} | next(environs))
        assert done.code == code, (argv, done)
        if "--detach" in words:
            session = done.out.strip()
        yield argv, done


COMMAND_LINES = {
    "setup": ["setup", "--from-env"],
    "config": ["config"],
    "create": ["create", "new"],
    "init": ["init", "dev"],
    "list": ["list"],
    "doctor": ["doctor"],
    "info": ["info", "dev"],
    "pause": ["pause", "dev", "--force", "--timeout", "3"],
    "resume": ["resume", "dev"],
    "exec": ["exec", "dev", "--env", "MINE", "--", "true"],
    "shell": ["shell", "dev"],
    "ssh": ["ssh", "--config", "dev"],
    "proxy": ["proxy", "dev", "{port}"],
    "checkpoint": ["checkpoint", "dev"],
    "checkpoints": ["checkpoints", "dev"],
    "restore": ["restore", "dev", "v1", "--yes"],
    "url": ["url", "dev"],
    "rename": ["rename", "dev", "dev2"],
    "destroy": ["destroy", "dev", "--yes"],
}


# Runs a program, and prints how it ended, what it wrote, its peak in bytes and the seconds it took.
# The launcher is small: what a process was before its exec counts as its own peak
MEASURE = """\
import json, resource, subprocess, sys, time
began = time.monotonic()
done = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, capture_output=True)
took = time.monotonic() - began
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
peak = peak if sys.platform == "darwin" else peak * 1024
texts = done.stdout.decode(), done.stderr.decode()
print(json.dumps([done.returncode, *texts, peak, took]))
"""
