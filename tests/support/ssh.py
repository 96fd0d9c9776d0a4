"""The system's own OpenSSH beside the program: a sprite that is a host of ssh, and what listens.

Everything lies below the HOME of the test. OpenSSH goes by the account's home, so each of its
programs is told our configuration by `-F`, and nothing touches the account's own ~/.ssh.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator
from emulation.machine import namespace_kind
from emulation.state import Sprite

from support.program import Result, Thopters

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_ssh = pytest.mark.skipif(
    not SSHD or not all(map(shutil.which, ("ssh", "scp", "sftp", "ssh-keygen"))),
    reason="OpenSSH's client or server is not here",
)
needs_user = pytest.mark.skipif(
    namespace_kind() != "root", reason="the sprite's user has no name, and an ssh server wants one"
)


class Host:
    """A sprite that is set up for ssh, and the programs of OpenSSH that are led to it."""

    def __init__(self, thopters: Thopters, emulator: Emulator, name: str = "dev") -> None:
        self.thopters = thopters
        self.emulator = emulator
        self.name = f"{name}.sprite"
        self.folder = thopters.home / ".ssh"
        self.config = self.folder / "config"
        done = thopters("ssh", "--setup", name, "--yes")
        assert done.code == 0, done

    @property
    def sprite(self) -> Sprite:
        return self.emulator.sprite(self.name.removesuffix(".sprite"))

    @property
    def shell(self) -> str:
        """Return what rsync, git and sshfs call ssh."""
        return f"ssh -F {self.config}"

    def argv(self, *words: str, options: Sequence[str] = ()) -> list[str]:
        return ["ssh", "-F", str(self.config), *options, self.name, *words]

    def run(self, argv: Sequence[str], *, code: int | None = 0, **options: Any) -> Result:
        """Run a program of this machine; `code` is the expected exit status, None for any."""
        source: dict[str, Any] = {} if "input" in options else {"stdin": subprocess.DEVNULL}
        env = self.thopters.env | options.pop("env", {})
        done = Result(
            subprocess.run(
                argv,
                capture_output=True,
                cwd=self.thopters.home,
                env=env,
                timeout=120,
                **source,
                **options,
            )
        )
        assert code is None or done.code == code, (argv, done)
        return done

    def ssh(self, *words: str, options: Sequence[str] = (), **more: Any) -> Result:
        return self.run(self.argv(*words, options=options), **more)

    def start(self, *words: str, options: Sequence[str] = (), **streams: Any) -> Any:
        """Start ssh and leave it running; the fixture of the program ends it."""
        pipes: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        argv = self.argv(*words, options=options)
        process = subprocess.Popen(
            argv, cwd=self.thopters.home, env=self.thopters.env, **(pipes | streams)
        )
        self.thopters.started.append(process)
        return process

    @contextlib.contextmanager
    def master(self, *options: str) -> Iterator[list[str]]:
        """Hold a connection that others share, and yield the options by which they do."""
        path = self.thopters.home / "master"
        process = self.start(options=["-MNS", str(path), *options])
        shared = ["-S", str(path)]
        while self.ssh(options=[*shared, "-O", "check"], code=None).code:
            assert process.poll() is None, process.communicate()
        yield shared
        self.ssh(options=[*shared, "-O", "exit"], code=None)
        process.wait(30)


def listening(pids: Iterable[int]) -> set[str]:
    """Return on which addresses some of these processes listen, as the kernel writes them."""
    inodes = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                inodes[fields[9]] = fields[1]
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    link = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{fd}"))
                    if link and link[1] in inodes:
                        found.add(inodes[link[1]])
    return found


def descendants(pid: int) -> set[int]:
    """Return what a process has started, and what that has, as far as it still belongs to it."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_text()
                parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    found, new = set[int](), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found
