"""The emulated platform on the command line.

  python3 tests/emulator.py             a shell in which `thopters` works against it
  python3 tests/emulator.py -- CMD ...  one command in that environment; its exit status is ours
  python3 tests/emulator.py --demo      the lifecycle of a sprite, played by the real program

Nothing leaves this machine, and nothing stays on it: HOME is a temporary folder.
"""

from __future__ import annotations

import os
import py_compile
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from emulation import SPRITE_PROGRAM, Emulator, write_launcher

ROOT = Path(__file__).resolve().parent.parent
DEMO = """\
thopters create dev
thopters list
thopters exec dev -- sh -c 'echo "precious work" > notes.txt'
thopters checkpoint dev --comment "known good"
thopters exec dev -- rm notes.txt
thopters exec dev -- ls
thopters checkpoints dev
thopters restore dev v1 --yes
thopters exec dev -- cat notes.txt
thopters url dev
thopters destroy dev --yes
thopters list
"""


def environment(emulator: Emulator, home: Path) -> dict[str, str]:
    """Return the variables of a place where `thopters` is a command and the emulator its API."""
    launchers = home / ".launchers"
    program = py_compile.compile(str(ROOT / "thopters.py"), str(launchers / "thopters.pyc"))
    write_launcher(launchers, "thopters", (sys.executable, str(program)))
    write_launcher(launchers, "sprite", SPRITE_PROGRAM)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SPRITE", "THOPTERS")) and not name.upper().endswith("_PROXY")
    }
    return kept | {
        "HOME": str(home),
        "PATH": f"{launchers}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "SPRITES_API_URL": emulator.url,
        "SPRITE_TOKEN": emulator.token,
    }


def play_demo(env: dict[str, str]) -> int:
    """Run the lifecycle, each command as one would type it; stop at the first that fails."""
    for line in DEMO.splitlines():
        print(f"$ {line}", flush=True)
        done = subprocess.run(
            ["/bin/sh", "-c", line], env=env, cwd=env["HOME"], stdin=subprocess.DEVNULL
        )
        if done.returncode:
            print(f"this exited with {done.returncode}", file=sys.stderr)
            return 1
    return 0


def open_shell(env: dict[str, str]) -> int:
    shell = os.environ.get("SHELL") or "/bin/bash"
    print("`thopters` works against the emulator here; try: thopters create dev", file=sys.stderr)
    return run(env, [shell])


def run(env: dict[str, str], argv: list[str]) -> int:
    """Run a command to its end; ^C is for the command, not for us."""
    signal.signal(signal.SIGINT, lambda *_: None)  # what is ignored stays so for all who follow
    try:
        process = subprocess.Popen(argv, env=env)
    except OSError as error:
        print(f"cannot run {argv[0]}: {error.strerror}", file=sys.stderr)
        return 127
    try:
        code = process.wait()
    finally:
        process.terminate()
    return code if code >= 0 else 128 - code


def end(signum: int, frame: object) -> NoReturn:
    sys.exit(128 + signum)


def usage() -> NoReturn:
    print(__doc__, file=sys.stderr)
    sys.exit(2)


def main() -> int:
    args = sys.argv[1:]
    if args not in ([], ["--demo"]) and (args[0] != "--" or not args[1:]):
        usage()
    for number in (signal.SIGHUP, signal.SIGTERM):  # so that nothing is left behind
        signal.signal(number, end)
    with tempfile.TemporaryDirectory(prefix="thopters-") as folder, Emulator() as emulator:
        env = environment(emulator, Path(folder))
        if args == ["--demo"]:
            return play_demo(env)
        return run(env, args[1:]) if args else open_shell(env)


if __name__ == "__main__":
    sys.exit(main())
