"""A stand-in for Windows: what needs no POSIX terminal works where POSIX is not to be had.

A child takes away the modules and names that Windows lacks, calls itself `nt`, brings the little of
`msvcrt` that the program uses, and runs it. What remains of POSIX underneath (paths, sockets) is
not Windows, so this proves that nothing else is asked for, and no more.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from emulation import Emulator
from emulation.state import Sprite
from support.program import MODULE, Result, Thopters

PRELUDE = """\
import os, sys, types
# what the standard library itself picks by the system is picked before, as for its own
import argparse, email.parser, getpass, http.client, random, select, signal, socket, ssl
import subprocess, tempfile, threading, urllib.request

ABSENT = (
    "fcntl", "termios", "tty", "pty", "pwd", "grp", "resource", "syslog", "readline", "curses",
)
for name in ABSENT:
    sys.modules[name] = None  # an import fails
for name in (
    "fork", "forkpty", "geteuid", "getuid", "getegid", "getgid", "setuid", "setgid", "setsid",
    "getpgid", "getpgrp", "setpgid", "killpg", "execve", "execv", "execvpe", "chown", "lchown",
    "fchmod", "fchown", "openpty", "O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "mkfifo", "uname",
    "O_PATH", "SEEK_DATA", "SEEK_HOLE", "setxattr", "getxattr", "listxattr",
    "wait", "WIFSIGNALED", "sched_getaffinity", "set_blocking", "ttyname", "posix_spawn",
):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGPIPE", "SIGKILL", "SIGQUIT", "SIGALRM", "SIGCHLD", "SIGWINCH", "SIGTSTP",
             "SIGCONT", "SIGUSR1", "SIGUSR2", "pthread_sigmask", "setitimer", "sigwait"):
    delattr(signal, name)
unix, pair = socket.AF_UNIX, socket.socketpair  # Windows makes a pair from other sockets
socket.socketpair = lambda: pair(unix)
for module, name in ((select, "poll"), (select, "epoll"), (socket, "AF_UNIX")):
    if hasattr(module, name):
        delattr(module, name)
def absent(sock):
    raise AttributeError("not on Windows")
socket.socket.sendmsg = socket.socket.recvmsg = property(absent)

msvcrt = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK, msvcrt.LK_UNLCK = 2, 0
msvcrt.locking = lambda fd, mode, count: None
msvcrt.setmode = lambda fd, mode: mode
sys.modules["msvcrt"] = msvcrt
os.O_BINARY = 0
for name in ("supports_dir_fd", "supports_fd", "supports_follow_symlinks"):
    setattr(os, name, {os.stat} if name == "supports_follow_symlinks" else set())
os.name, sys.platform = "nt", "win32"

sys.path.insert(0, sys.argv.pop(1))
import thopters
thopters.leave(thopters.main())
"""


@pytest.fixture
def windows(thopters: Thopters) -> Thopters:
    """Return the program as the stand-in runs it; its home is named as it is on Windows."""
    thopters.argv = [sys.executable, "-c", PRELUDE, str(MODULE.parent)]
    thopters.env["USERPROFILE"] = thopters.env.pop("HOME")
    return thopters


def ok(done: Result) -> str:
    assert done.code == 0, done
    assert "Traceback" not in done.err and "internal error" not in done.err
    return done.out


def test_windows_the_prelude_takes_something_away(windows: Thopters, tmp_path: Path) -> None:
    """So that the tests below can fail: a program that asks for POSIX does not run."""
    windows.argv[-1] = str(tmp_path)
    program = (
        "import sys\n{}\ndef main():\n    return 0\ndef leave(status):\n    sys.exit(status)\n"
    )
    for line, code in (
        ("import subprocess, select", 0),
        ("import fcntl", 1),
        ("import termios", 1),
        ("import os; os.fork", 1),
        ("import os; os.geteuid()", 1),
        ("import signal; signal.SIGHUP", 1),
        ("import socket; socket.socket().sendmsg", 1),
    ):
        (tmp_path / "thopters.py").write_text(program.format(line))
        assert windows().code == code, line


def test_windows_help_and_version(windows: Thopters) -> None:
    assert ok(windows("--version")).rstrip().endswith("win32)")
    assert "usage: thopters" in ok(windows("--help"))
    for words in (["exec", "--help"], ["help", "cp"]):
        assert "usage: thopters" in ok(windows(*words))


def test_windows_setup_and_config(windows: Thopters, emulator: Emulator) -> None:
    path = windows.home / ".sprite-thopters" / "config.json"
    env = {"OPENAI_API_KEY": "sk-canary-0123", "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@b.c"}
    assert ok(windows("setup", "--from-env", env=env)) == f"saved {path}\n"
    assert json.loads(path.read_bytes())["secrets"] == {"OPENAI_API_KEY": "sk-canary-0123"}
    assert ok(windows("config", "--path")) == f"{path}\n"
    told = json.loads(ok(windows("config", "--json")))
    assert told["secrets"] == {"OPENAI_API_KEY": {"length": 14}}


def test_windows_the_life_of_a_sprite(windows: Thopters, emulator: Emulator) -> None:
    made = json.loads(ok(windows("create", "dev", "--no-init", "--json")))
    assert made["created"] is True
    assert ok(windows("list")).startswith("dev\trunning\t")
    assert ok(windows("url", "dev")) == emulator.sprite("dev").url + "\n"
    ok(windows("url", "dev", "--public"))
    assert ok(windows("checkpoint", "dev", "--comment", "first")) == "v1\n"
    assert ok(windows("checkpoints", "dev")).startswith("v1\t")
    assert ok(windows("restore", "dev", "v1", "--yes")).startswith("restored dev to v1")
    assert "dev" in ok(windows("resume", "dev"))
    ok(windows("pause", "dev", "--no-wait"))
    assert windows("rename", "dev", "dev2").code == 1
    assert windows("destroy", "dev").code == 2
    assert ok(windows("destroy", "dev", "--yes")) == "destroyed dev\n"
    assert windows("url", "dev").code == 3
    assert not emulator.journal.oddities


def test_windows_commands_in_a_sprite(windows: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running")
    done = windows("exec", "dev", "--no-hold", "--", "sh", "-c", "echo out; echo err >&2; exit 42")
    assert (done.code, done.out, done.err) == (42, "out\n", "err\n")
    done = windows("exec", "dev", "-i", "--", "cat", stdin=b"a\r\nb\x1a\n")
    assert (done.code, done.out_bytes) == (0, b"a\r\nb\x1a\n"), done
    assert "dev: " in ok(windows("init", "dev"))
    (windows.home / "file").write_bytes(b"a\r\nb\n")
    ok(windows("cp", "file", "dev:copied"))
    assert windows("cp", "dev:copied", "-").out_bytes == b"a\r\nb\n"


def test_s5_windows_takes_no_name_for_a_way_out(windows: Thopters, sprite: Sprite) -> None:
    """Folders go both ways; names that mean something else there are left out, and named."""
    (sprite.home / "d" / "sub").mkdir(parents=True)
    (sprite.home / "d" / "sub" / "fine").write_text("fine")
    (sprite.home / "d" / "second").hardlink_to(sprite.home / "d" / "sub" / "fine")
    (sprite.home / "d" / "link").symlink_to("sub")
    strange = ["..\\..\\x", "C:x", "\\x", "f:stream", "nul", "..."]
    for name in strange:
        (sprite.home / "d" / name).write_text("x")
    (sprite.home / "d" / ".. ").mkdir()
    (sprite.home / "d" / ".. " / "x").write_text("x")
    sprite.machine.own(sprite.home)
    (windows.home / "place").mkdir()
    for words in (["dev:d", "place"], ["dev:d", "place"], ["dev:d/.", "place/new/"]):
        done = windows("cp", *words)
        assert done.code == 1, done
        told = re.findall(r"left out: (.*): this system has no such names", done.err)
        assert len(told) == len(strange) + 2, done
    for folder in (windows.home / "place" / "d", windows.home / "place" / "new"):
        assert sorted(os.listdir(folder)) == ["link", "second", "sub"]
        assert os.listdir(folder / "sub") == ["fine"]
    assert os.listdir(windows.home) == ["place"]
    ok(windows("cp", "place/d", "dev:again/"))
    assert sorted(os.listdir(sprite.home / "again")) == ["link", "second", "sub"]


def test_windows_without_the_program_there_is_no_shell(
    windows: Thopters, emulator: Emulator
) -> None:
    emulator.add_sprite("dev", status="running")
    done = windows("shell", "dev")
    assert done.code == 127, done
    assert "sprite program" in done.err and "hint: " in done.err
