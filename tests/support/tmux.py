"""A real terminal emulator, tmux, in which a command runs; what it shows, and its modes."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

needs_tmux = pytest.mark.skipif(not shutil.which("tmux"), reason="tmux is not installed")
_numbers = itertools.count()


class Pane:
    """A window of 80 columns and 24 rows with `argv` in it."""

    def __init__(self, folder: Path, argv: list[str], env: dict[str, str]) -> None:
        self._tmux = ["tmux", "-L", f"thopters-{os.getpid()}-{next(_numbers)}", "-f", "/dev/null"]
        self._env = env | {"TMUX_TMPDIR": str(folder), "SHELL": "/bin/sh"}
        words = ["env", *(f"{name}={value}" for name, value in env.items()), *argv]
        self._run("new-session", "-d", "-x", "80", "-y", "24", shlex.join(words))

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            [*self._tmux, *words], env=self._env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def __enter__(self) -> Pane:
        return self

    def __exit__(self, *exc: object) -> None:
        self._run("kill-server")

    def type(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def lines(self, *, with_colours: bool = False) -> list[str]:
        """Return what is shown, without blank lines at the end."""
        shown = self._run("capture-pane", "-p", *(["-e"] if with_colours else []))
        return shown.rstrip().splitlines()

    def told(self, names: str) -> dict[str, str]:
        """Return what tmux tells of the pane, such as insert_flag and cursor_x."""
        words = names.split()
        values = self._run("display-message", "-p", " ".join(f"#{{{name}}}" for name in words))
        return dict(zip(words, values.split(), strict=True))

    def copy(self, text: str) -> None:
        """Fill tmux's clipboard, which a program can write to as well."""
        self._run("set-buffer", text)

    def copied(self) -> str:
        return self._run("show-buffer")
