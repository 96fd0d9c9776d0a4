"""R32-R36: the configuration file survives kills, crowds, broken disks, odd homes and every umask.

What is looked at is the folder: what can be read in it, by whom, and what is left over.
"""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator
from support.configs import KEYS, ME, SECRETS, mode, updater, write
from support.program import MODULE, Thopters

import thopters as program

# R32: kills

# On each line of input a writer is born, which changes the file until it is killed
FORKER = """\
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import thopters, fcntl, json, time, contextlib
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
def change(document):
    document["count"] = document.get("count", 0) + 1
    document["filler"] = "x" * 20_000
for line in sys.stdin:
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    os.close(0)
    config = thopters.Config(os.environ, thopters.Console(sys.stdout, sys.stderr, os.environ))
    while True:
        config.update(change)
"""


class Writers:
    """Two writers at a time, killed one by one, each followed by another."""

    def __init__(self, thopters: Thopters, config: Path) -> None:
        argv = [sys.executable, "-c", FORKER, str(MODULE.parent)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.config = config
        self.forker = subprocess.Popen(argv, env=thopters.env, text=True, **pipes)  # type: ignore[call-overload]
        self.alive = [self.start(), self.start()]

    def start(self) -> int:
        self.forker.stdin.write("\n")
        self.forker.stdin.flush()
        return int(self.forker.stdout.readline())

    def kill_one(self, rng: random.Random) -> None:
        """Kill one somewhere in its work: after a change by anybody and a moment."""
        before = self.inode()
        end = time.monotonic() + 30
        while self.inode() == before:
            assert time.monotonic() < end, "nobody writes"
        time.sleep(rng.random() * 0.004)  # not a wait for anything: the place of the kill
        os.kill(self.alive.pop(0), signal.SIGKILL)
        self.alive.append(self.start())

    def inode(self) -> int:
        return self.config.stat().st_ino if self.config.exists() else 0

    def close(self) -> None:
        for pid in self.alive:
            os.kill(pid, signal.SIGKILL)
        self.forker.stdin.close()
        self.forker.stdout.close()
        self.forker.wait()


def kill_writers(thopters: Thopters, config: Path, count: int) -> None:
    writers, rng, last = Writers(thopters, config), random.Random(os.urandom(8)), 0
    temporary, lock = config.with_name("config.json.new"), config.with_name("config.json.lock")
    try:
        for _ in range(count):
            writers.kill_one(rng)
            number = json.loads(config.read_bytes())["count"]
            assert number > last, "a change that was seen is gone"
            last = number
            entries = list(config.parent.iterdir())
            assert set(entries) <= {config, temporary, lock}
            for place in (config.parent, *entries):
                assert not mode_if_any(place) & 0o077, place
    finally:
        writers.close()
    assert thopters("config").code == 0


def mode_if_any(place: Path) -> int:
    """Return the mode of what may be renamed or removed at this moment."""
    try:
        return mode(place)
    except FileNotFoundError:
        return 0


def test_r32_killed_writers_leave_a_whole_file(
    thopters: Thopters,
    path: Path,
) -> None:
    kill_writers(thopters, path, 30)


@pytest.mark.slow
def test_r32_a_thousand_killed_writers_leave_a_whole_file(
    thopters: Thopters,
    path: Path,
) -> None:
    kill_writers(thopters, path, 1000)


# R33: crowds


def crowd(thopters: Thopters, config: Path, processes: int, updates: int) -> None:
    writers = [updater(thopters, updates) for _ in range(processes)]
    assert [writer.wait(120) for writer in writers] == [0] * processes
    assert json.loads(config.read_bytes())["count"] == processes * updates
    assert {entry.name for entry in config.parent.iterdir()} == {"config.json", "config.json.lock"}


def test_r33_a_crowd_of_writers_loses_nothing(
    thopters: Thopters,
    path: Path,
) -> None:
    crowd(thopters, path, 8, 10)


@pytest.mark.slow
def test_r33_fifty_writers_lose_nothing(
    thopters: Thopters,
    path: Path,
) -> None:
    began = time.monotonic()
    crowd(thopters, path, 50, 20)
    assert time.monotonic() - began < 30  # three times the figure


# R34: every system call of a save fails once


class Failing:
    """Counts the system calls of a save, as the program makes them, and has one fail."""

    # os.lstat and os.readlink are not here: what looks for links takes a failure for "no link"
    CALLS = ("open", "close", "fsync", "replace", "mkdir", "unlink", "stat", "fstat", "chmod",
             "fchmod")  # fmt: skip

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int | None, failure: Any) -> None:
        self.made: list[str] = []
        self.at = at
        self.failure = failure
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self.wrap(f"os.{name}", getattr(os, name)))
        if sys.platform != "win32":
            import fcntl

            monkeypatch.setattr(fcntl, "flock", self.wrap("flock", fcntl.flock))
        monkeypatch.setattr(program, "open", self.open, raising=False)

    def count(self, name: str) -> None:
        self.made.append(name)
        if len(self.made) - 1 == self.at:
            raise self.failure

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def call(*args: Any, **options: Any) -> Any:
            if name == "os.close":
                real(*args, **options)  # a close that fails has closed all the same
                self.count(name)
                return None
            self.count(name)
            return real(*args, **options)

        return call

    def open(self, file: Any, how: str = "r", opener: Any = None) -> Any:
        """Stand in for the builtin: its file's reads and writes are counted as well."""
        if not opener:
            self.count("open")
        opened = io.open(file, how, opener=opener)  # noqa: SIM115, UP020 (the caller closes it)
        return CountedFile(opened, self)


class CountedFile:
    """A file whose calls are counted; it is a context as files are."""

    def __init__(self, file: Any, failing: Failing) -> None:
        self.file = file
        self.failing = failing

    def __enter__(self) -> CountedFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.failing.count("close")

    def fileno(self) -> int:
        return int(self.file.fileno())

    def read(self, size: int) -> Any:
        self.failing.count("read")
        return self.file.read(size)

    def write(self, data: bytes) -> Any:
        self.file.write(data[: len(data) // 2])  # a full disk takes a part
        self.file.flush()
        self.failing.count("write")
        return self.file.write(data[len(data) // 2 :])

    def flush(self) -> None:
        self.failing.count("flush")
        self.file.flush()


def save_once(
    config: Path, monkeypatch: pytest.MonkeyPatch, at: int | None, failure: Any
) -> tuple[list[str], BaseException | None, str]:
    """Save with the call number `at` failing: the calls, the error, and what was said."""
    environ, err = {"THOPTERS_CONFIG": str(config)}, io.StringIO()
    console = program.Console(io.StringIO(), err, {})

    def change(document: dict[str, Any]) -> None:
        document.setdefault("secrets", {})["MINE"] = "new" * 1000

    raised: BaseException | None = None
    with monkeypatch.context() as patch:
        failing = Failing(patch, at, failure)
        try:
            program.Config(environ, console).update(change)
        except BaseException as error:
            raised = error
    return failing.made, raised, err.getvalue()


FAILURES: dict[str, OSError | program.Interrupted] = {
    "ENOSPC": OSError(errno.ENOSPC, "No space left on device"),
    "EACCES": PermissionError(errno.EACCES, "Permission denied"),
    "EIO": OSError(errno.EIO, "Input/output error"),
    "EINTR": InterruptedError(errno.EINTR, "Interrupted system call"),
    "a signal": program.Interrupted(signal.SIGTERM),
}


class Folder:
    """A place for a configuration, in one of the states in which a save may find it."""

    def __init__(self, base: Path, state: str) -> None:
        self.config = base / "deep" / ".sprite-thopters" / "config.json"
        self.old: bytes | None = None
        if state != "no folder":
            self.config.parent.mkdir(mode=0o700, parents=True)
        if state.startswith("a file"):
            self.old = write(self.config, {"secrets": {"MINE": "old"}, "other": [1]})
        self.stray = state.endswith("a stray one")
        if self.stray:  # of a writer that was killed
            write(self.config.with_name("config.json.new"), b'{"secrets": {"MI')

    @property
    def content(self) -> bytes | None:
        return self.config.read_bytes() if self.config.exists() else None

    def left(self) -> set[str]:
        """Return the names in the folder, all of which nobody else may read."""
        entries = list(self.config.parent.iterdir()) if self.config.parent.exists() else []
        assert all(mode(entry) == 0o600 for entry in entries)
        return {entry.name for entry in entries}


# a failure of these may pass unseen: nothing is lost by it, or it was said as a warning
HARMLESS = ("os.stat", "os.chmod", "os.close", "flock")


@pytest.mark.parametrize(
    "state",
    [
        "no folder",
        "a file and a stray one",
        pytest.param("a file", marks=pytest.mark.slow),
        pytest.param("no file", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("failure", FAILURES)
def test_r34_whatever_fails_in_a_save_the_file_is_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str, state: str
) -> None:
    exception = FAILURES[failure]
    sound = Folder(tmp_path / "sound", state)
    made, raised, _ = save_once(sound.config, monkeypatch, None, None)
    assert raised is None
    assert {"os.open", "write", "flush", "os.fsync", "os.replace", "flock", "os.close"} <= set(made)
    assert made.count("os.fsync") == (2 if os.name == "posix" else 1)  # the folder's too
    new = sound.content
    assert new and json.loads(new)["secrets"]["MINE"] == "new" * 1000
    for at in range(len(made)):
        folder = Folder(tmp_path / str(at), state)
        done, raised, said = save_once(folder.config, monkeypatch, at, exception)
        call = f"{done[at]} (number {at} of {len(made)}): {raised!r} {said}"
        assert folder.content in (folder.old, new), call
        assert said.count("\n") <= 1, call
        if isinstance(exception, program.Interrupted):
            assert raised is exception, call
        elif raised is None:
            harmless = done[at] in HARMLESS or (done[at] == "os.open" and failure == "EACCES")
            assert folder.content == new and harmless, call  # a folder that can't be read
        else:
            assert isinstance(raised, program.ThoptersError), call
            assert str(exception.strerror) in raised.message and "\n" not in raised.message, call
            assert str(folder.config) in raised.message and "newnew" not in raised.message, call
        lies_there_still = folder.stray and "os.unlink" not in done[:at]
        kept = {"config.json.new"} if lies_there_still else set()
        assert folder.left() <= {"config.json", "config.json.lock", *kept}, call
        _, raised, _ = save_once(folder.config, monkeypatch, None, None)
        assert raised is None and folder.content == new, "the next save does not work"


STRACE_CALLS = ("openat", "write", "fsync", "rename", "flock", "unlink", "fchmod")


def has_strace() -> bool:
    probe = ["strace", "-e", "inject=fsync:error=EIO", "true"]
    try:
        return subprocess.run(probe, capture_output=True).returncode == 0
    except OSError:
        return False


# so that the calls of the save can be told from those of Python's own start
MARKED_SAVE = """\
import os, sys
sys.path.insert(0, sys.argv[1])
import contextlib, fcntl, json, time
import thopters
config = thopters.Config(os.environ, thopters.Console(sys.stdout, sys.stderr, os.environ))
def change(document):
    document["secrets"]["MINE"] = "new" * 1000
for number in range(200):
    if os.access("/the/save/begins", os.F_OK):
        break
try:
    config.update(change)
except thopters.ThoptersError as error:
    print(error.message, flush=True)
    os._exit(1)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", ["ENOSPC", "EACCES", "EIO", "EINTR"])
def test_r34_the_same_with_failures_of_the_system(
    thopters: Thopters,
    path: Path,
    tmp_path: Path,
    code: str,
) -> None:
    """Each call of each kind fails in the system, seen from outside of Python."""
    if not has_strace():
        pytest.skip("strace is not installed, or may not be used")
    old = write(path, {"secrets": {"MINE": "old"}})
    log = tmp_path / "log"
    save = [sys.executable, "-S", "-c", MARKED_SAVE, str(MODULE.parent)]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        argv = ["strace", "-o", str(log), "-e", "trace=access,faccessat2," + ",".join(STRACE_CALLS)]
        return subprocess.run([*argv, *options, *save], env=thopters.env, capture_output=True,
                              text=True)  # fmt: skip

    assert run().returncode == 0
    new = path.read_bytes()
    lines = log.read_text().splitlines()
    begin = max(number for number, line in enumerate(lines) if "/the/save/begins" in line)
    tried = 0
    for call in STRACE_CALLS:
        places = [line.startswith(call + "(") for line in lines]
        for number in range(sum(places[:begin]) + 1, sum(places) + 1):
            write(path, old)
            done = run("-e", f"inject={call}:error={code}:when={number}")
            where = f"{call} number {number}: {done}"
            assert path.read_bytes() in (old, new), where
            assert done.returncode in (0, 1) and not done.stderr, where
            if done.returncode == 0:
                assert path.read_bytes() == new, where
            else:
                assert f"{path}" in done.stdout and done.stdout.count("\n") == 1, where
            left = {entry.name for entry in path.parent.iterdir()}
            assert left <= {"config.json", "config.json.lock"} or call == "unlink", where
            tried += 1
    assert tried >= 8


# R35: what may be in the file's place


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfe{}", "is not valid JSON"),
        (b'{"secrets": {"MINE": "canary', "is not valid JSON"),
        (b'["canary"]', "does not hold a JSON object"),
        (b'{"version": 2, "secrets": {"MINE": "canary"}}', "was written by a newer thopters"),
        (b'{"x": ' + b"[" * 200_000, "is not valid JSON"),
    ],
    ids=["corrupt", "truncated", "no object", "newer", "deep"],
)
def test_r35_a_file_that_is_not_understood_stays_as_it_is(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
    content: bytes,
    says: str,
) -> None:
    write(path, content)
    inode = path.stat().st_ino
    done = thopters("setup", "--from-env", env=SECRETS)
    assert (done.code, done.out) == (1, "")
    assert f"thopters: error: {path}" in done.err
    assert says in done.err
    assert "canary" not in done.err
    assert (path.read_bytes(), path.stat().st_ino) == (content, inode)
    assert not path.with_name("config.json.new").exists()


@pytest.mark.parametrize(
    ("file_mode", "folder_mode"),
    [(0o644, 0o755), (0o666, 0o777), (0o604, 0o705), (0o660, 0o770)],
)
def test_r35_lax_modes_are_taken_back_and_said(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
    file_mode: int,
    folder_mode: int,
) -> None:
    write(path, {"secrets": KEYS})
    path.chmod(file_mode)
    path.parent.chmod(folder_mode)
    done = thopters("list")
    assert done.code == 0
    assert f"others could use {path}; its mode is 600 now\n" in done.err
    assert f"others could use {path.parent}; its mode is 700 now\n" in done.err
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)


LINKS = {
    "relative": ("../dotfiles/thopters.json", True),
    "absolute": ("{home}/dotfiles/thopters.json", True),
    "dangling": ("../dotfiles/thopters.json", False),
    "of a link": ("../second", True),
}


@pytest.mark.parametrize("kind", LINKS)
def test_r35_a_link_stays_and_its_target_is_replaced(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
    kind: str,
) -> None:
    leads_to, there = LINKS[kind]
    target = thopters.home / "dotfiles" / "thopters.json"
    target.parent.mkdir(mode=0o700)
    (thopters.home / "second").symlink_to("dotfiles/thopters.json")
    if there:
        write(target, {"other": 1})
    path.parent.mkdir(mode=0o700)
    path.symlink_to(leads_to.format(home=thopters.home))
    link = os.readlink(path)
    done = thopters("setup", "--from-env", env=SECRETS)
    assert done.code == 0, done
    assert os.readlink(path) == link
    assert json.loads(target.read_bytes())["secrets"] == SECRETS
    assert mode(target) == 0o600
    assert sorted(os.listdir(target.parent)) == ["thopters.json", "thopters.json.lock"]
    assert os.listdir(path.parent) == ["config.json"]


def test_r35_a_link_that_leads_in_a_circle_is_one_error(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
) -> None:
    path.parent.mkdir(mode=0o700)
    path.symlink_to("config.json")
    done = thopters("setup", "--from-env", env=SECRETS)
    assert (done.code, done.out) == (1, "")
    assert done.err.count("thopters: error: ") == 1 and str(path) in done.err
    assert os.readlink(path) == "config.json"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("through_a_link", [False, True])
def test_r35_another_users_file_is_neither_used_nor_changed(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
    through_a_link: bool,
) -> None:
    real = thopters.home / "elsewhere.json" if through_a_link else path
    content = write(real, {"secrets": {"MINE": "canary"}})
    if through_a_link:
        path.parent.mkdir(mode=0o700)
        path.symlink_to(real)
    os.chown(real, 52000, 52000)
    for words in (["setup", "--from-env"], ["config"], ["create", "dev"]):
        done = thopters(*words, env=SECRETS)
        assert (done.code, done.out) == (1, ""), words
        assert "belongs to another user" in done.err and "canary" not in done.err
    assert (real.read_bytes(), real.stat().st_uid) == (content, 52000)
    assert not emulator.sprites


@pytest.mark.parametrize("home", [None, "", "relative", ".", "~"])
def test_r35_a_home_that_is_none_is_wrong_usage(
    thopters: Thopters, emulator: Emulator, home: str | None
) -> None:
    (thopters.home / "relative").mkdir()
    del thopters.env["HOME"]
    env = SECRETS | ({} if home is None else {"HOME": home})
    done = thopters("setup", "--from-env", env=env)
    assert (done.code, done.out) == (2, "")
    assert "HOME is not " in done.err and "THOPTERS_CONFIG" in done.err
    assert os.listdir(thopters.home) == ["relative"] and not os.listdir(thopters.home / "relative")
    assert not len(emulator.journal)


def test_r35_a_home_that_is_missing_is_made_for_the_user_alone(
    thopters: Thopters, emulator: Emulator, tmp_path: Path
) -> None:
    home = tmp_path / "not" / "there"
    done = thopters("setup", "--from-env", env=SECRETS | {"HOME": str(home)}, umask=0)
    assert done.code == 0
    made = [home.parent, home, home / ".sprite-thopters"]
    assert [mode(folder) for folder in made] == [0o700] * 3


@pytest.mark.parametrize("what", ["home", "folder", "file"])
def test_r35_what_is_read_only_is_said_and_left(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
    what: str,
) -> None:
    content = None if what == "home" else write(path, {"secrets": {"MINE": "old"}})
    options = thopters.as_somebody()
    place = {"home": thopters.home, "folder": path.parent, "file": path}[what]
    place.chmod(0o400 if what == "file" else 0o500)
    try:
        done = thopters("setup", "--from-env", env=SECRETS, **options)
        if what == "file":  # it is replaced, which its folder allows
            assert done.code == 0 and mode(path) == 0o600
            return
        assert (done.code, done.out) == (1, "")
        assert f"thopters: error: cannot write {path}: Permission denied\n" in done.err
        assert thopters("list", **options).code == 0  # what only reads goes on
        assert (path.read_bytes() if path.exists() else None) == content
    finally:
        place.chmod(0o700)


# R36: never wider than it may be, at no moment


# Looks at the modes around every call of a C function, of which each system call is one
WATCHING = """\
import os, sys
sys.path.insert(0, sys.argv[1])
import contextlib, fcntl, json, time
import thopters
home, seen, wide = os.environ["HOME"], set(), set()
def look(frame, event, arg):
    where = frame.f_globals.get("__name__")
    if event not in ("c_call", "c_return") or where not in ("thopters", "__main__"):
        return
    for folder, _, files in os.walk(home):
        for name in ["", *files]:
            place = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                mode = os.lstat(place).st_mode
                if folder != home:
                    seen.add(os.path.basename(place.rstrip("/")))
                    if mode & 0o077:
                        wide.add((place, oct(mode)))
sys.setprofile(look)
status = thopters.main(["setup", "--from-env"])
sys.setprofile(None)
print(sorted(seen), sorted(wide))
sys.exit(status)
"""


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("before", ["nothing", "a file"])
def test_r36_secrets_are_never_open_to_others(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
    umask: int,
    before: str,
) -> None:
    if before == "a file":
        write(path, {"secrets": {"MINE": "old"}})
    done = subprocess.run(
        [sys.executable, "-c", WATCHING, str(MODULE.parent)],
        env=thopters.env | SECRETS | ME,
        umask=umask,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done
    assert "'config.json.new'" in done.stdout, "the watcher saw nothing"
    assert done.stdout.endswith(" []\n"), done.stdout
    found = {entry.name: mode(entry) for entry in path.parent.iterdir()}
    assert found == {"config.json": 0o600, "config.json.lock": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_r36_the_watcher_sees_what_is_too_wide(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
) -> None:
    """So that the test above can fail: a file that is open for one moment."""
    write(path, {"secrets": {"MINE": "old"}})
    slip = """
real = os.fsync
def fsync(fd):
    with contextlib.suppress(FileNotFoundError):
        os.chmod(config_new, 0o644)
        os.chmod(config_new, 0o600)
    real(fd)
os.fsync, config_new = fsync, os.path.join(home, ".sprite-thopters", "config.json.new")
sys.setprofile(look)
"""
    script = WATCHING.replace("sys.setprofile(look)\n", slip)
    done = subprocess.run(
        [sys.executable, "-c", script, str(MODULE.parent)],
        env=thopters.env | SECRETS | ME, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "config.json.new', '0o100644'" in done.stdout, done


def test_r36_what_is_no_file_is_left_as_it_is(thopters: Thopters, tmp_path: Path) -> None:
    """As root it could be /dev/null itself that a file took the place of, or lost its mode."""
    place = tmp_path / "place"
    os.mkfifo(place, 0o666)
    place.chmod(0o666)
    (real := tmp_path / "real.json").write_text('{"secrets": {"MINE": "mine"}}')
    feed = f"cat {real} > {place} & exec {' '.join(thopters.argv)} config"
    thopters.env["THOPTERS_CONFIG"] = str(place)
    shown = subprocess.run(
        ["sh", "-c", feed], env=thopters.env, capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0 and "others could" not in shown.stderr, shown
    assert "MINE" in shown.stdout
    (home := tmp_path / "no config").mkdir()
    console = program.Console(io.StringIO(), io.StringIO(), {})
    config = program.Config({"HOME": str(home)}, console)
    config.path = config.real_path = str(place)
    with pytest.raises(program.ThoptersError, match="is not a file, so nothing can be saved in it"):
        config.update(lambda document: None)
    assert place.is_fifo() and mode(place) == 0o666
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith("place.")]


def test_r36_a_folder_that_many_share_keeps_its_mode(thopters: Thopters, tmp_path: Path) -> None:
    (shared := tmp_path / "shared").mkdir()
    shared.chmod(0o1777)
    write(shared / "config.json", {})
    done = thopters("config", env={"THOPTERS_CONFIG": str(shared / "config.json")})
    assert done.code == 0 and "others could" not in done.err, done
    assert shared.stat().st_mode & 0o7777 == 0o1777


def test_r36_a_link_in_the_place_of_the_lock_is_not_followed(
    thopters: Thopters,
    emulator: Emulator,
    path: Path,
    tmp_path: Path,
) -> None:
    before = write(path, {"secrets": {"MINE": "old"}})
    path.with_name("config.json.lock").symlink_to(tmp_path / "elsewhere")
    done = thopters("setup", "--from-env", env=SECRETS)
    assert done.code == 1
    assert f"thopters: error: cannot write {path}: " in done.err
    assert path.read_bytes() == before
    assert not (tmp_path / "elsewhere").exists()


def test_r36_a_temporary_file_of_somebody_elses_is_not_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path, "a file and a stray one")
    stray = folder.config.with_name("config.json.new")
    before = stray.read_bytes()

    def too_early(name: str) -> None:
        raise FileNotFoundError  # it was put there just after we looked

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", too_early)
        console = program.Console(io.StringIO(), io.StringIO(), {})
        config = program.Config({"THOPTERS_CONFIG": str(folder.config)}, console)
        with pytest.raises(program.ThoptersError, match="File exists"):
            config.update(lambda document: None)
    assert (folder.content, stray.read_bytes()) == (folder.old, before)
