"""The program as a child process, in a sealed environment, and how a run of it ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator

from support.pythons import compiled_by

ROOT = Path(__file__).resolve().parent.parent.parent
MODULE = ROOT / "thopters.py"

# For what may depend on being started from an archive, which otherwise runs the same module
both = pytest.mark.parametrize("thopters", ["module", "pyz"], indirect=True)


class Result:
    """How a run of the program ended: exit status (negative: by signal) and what it wrote."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.code = done.returncode
        self.out_bytes = done.stdout
        self.err_bytes = done.stderr
        self.out = done.stdout.decode(errors="replace")
        self.err = done.stderr.decode(errors="replace")

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.out}--- stderr\n{self.err}"


class Thopters:
    """Runs the program as a child process in a sealed environment."""

    def __init__(self, program: Path, home: Path) -> None:
        self.argv = [sys.executable, str(program)]
        self.home = home
        self.started: list[subprocess.Popen[bytes]] = []
        self.env = {
            "HOME": str(home),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "COLUMNS": "80",
            "PYTHONDONTWRITEBYTECODE": "1",
            "THOPTERS_GITHUB_API": "http://127.0.0.1:9",  # nothing leaves this machine
        }

    def use(self, emulator: Emulator) -> None:
        self.env |= {"SPRITES_API_URL": emulator.url, "SPRITE_TOKEN": emulator.token}

    def __call__(
        self,
        *args: str | bytes,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
        timeout: float = 60,
        **options: Any,
    ) -> Result:
        """Run to the end. `env` adds variables; stdin is /dev/null unless given."""
        source: dict[str, Any] = {"input": stdin} if stdin is not None else {}
        return Result(
            subprocess.run(
                [*self.argv, *args],
                env=self.env | (env or {}),
                capture_output=True,
                timeout=timeout,
                cwd=self.home,
                **(source or {"stdin": subprocess.DEVNULL}),
                **options,
            )
        )

    def as_somebody(self) -> dict[str, Any]:
        """Return the options that run the program as a user whom modes bind, who owns the home."""
        if os.geteuid() != 0:
            return {}
        options: dict[str, Any] = {"user": 52000, "group": 52000, "extra_groups": []}
        probe = "import sys; sys.exit(sys.version_info < (3, 11))"
        for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
            with contextlib.suppress(OSError):
                done = subprocess.run(
                    [python, "-c", probe], cwd="/", capture_output=True, **options
                )
                if done.returncode == 0:
                    break
        else:
            pytest.skip("no Python here can be run by another user")
        copy = self.home.with_name("thopters.pyc")
        copy.write_bytes(compiled_by(python).read_bytes())
        self.argv = [python, str(copy)]
        for folder in copy.parents[:3]:
            folder.chmod(0o755)
        for place in (self.home, *self.home.rglob("*")):
            os.lchown(place, 52000, 52000)
        return options

    def start(self, *args: str | bytes, **options: Any) -> subprocess.Popen[bytes]:
        """Start the program and leave it running; its streams are pipes unless named."""
        pipes: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        argv: list[str | bytes] = [*self.argv, *args]
        process = subprocess.Popen(argv, env=self.env, cwd=self.home, **(pipes | options))
        self.started.append(process)
        return process

    def end(self) -> None:
        """End what `start` has left behind."""
        for process in self.started:
            process.kill()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()
            process.wait()
