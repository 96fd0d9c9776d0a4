"""Real terminals on a display that nobody sees: xterm and kitty under Xvfb, keys by xdotool."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

# Each begins in the display's corner, and ends with what runs in it
TERMINALS = {
    "xterm": ["xterm", "-geometry", "80x24+0+0", "-e"],
    "kitty": ["kitty", "--config", "NONE"],
}


class Display:
    """A display with one terminal in it, in which `argv` runs."""

    def __init__(self, terminal: str, folder: Path, argv: list[str], env: dict[str, str]) -> None:
        for name in (terminal, "Xvfb", "xdotool"):
            if not shutil.which(name):
                pytest.skip(f"{name} is not installed")
        self._server = subprocess.Popen(
            ["Xvfb", "-displayfd", "1", "-screen", "0", "1024x768x24"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._server.stdout
        number = self._server.stdout.readline().decode().strip()
        if not number:
            self._server.wait()
            pytest.skip("Xvfb does not start")
        self._env = env | {
            "DISPLAY": f":{number}",
            "XDG_RUNTIME_DIR": str(folder),
            "LIBGL_ALWAYS_SOFTWARE": "1",  # for kitty, which draws by OpenGL
        }
        with (folder / "log").open("wb") as log:
            self._terminal = subprocess.Popen(
                [*TERMINALS[terminal], *argv], env=self._env, stdout=log, stderr=log
            )

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in (self._terminal, self._server):
            process.terminate()
            process.wait(60)
        if self._server.stdout:
            self._server.stdout.close()

    @property
    def has_ended(self) -> bool:
        return self._terminal.poll() is not None

    def type(self, key: str) -> None:
        """Press a key, by the name that X has for it, with the pointer in the window."""
        words = ["xdotool", "mousemove", "50", "50", "key", "--clearmodifiers", key]
        subprocess.run(words, env=self._env, check=True, capture_output=True, timeout=60)
