"""Programs that nobody here wrote, over `exec`, `shell` and `proxy`: right to the byte.

A program on a terminal runs twice, here and in the sprite, with the same keys, and has to look the
same. Its terminal is the package `pyte`, which also answers what programs ask of one. That and the
public WebSocket test suite, as the package `kosoku` runs it, come from PyPI into a folder that is
thrown away; Ink and blessed come from npm in the same way. What a session leaves on the screen is
asked of xterm and kitty. What can't be had is skipped.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator
from emulation.state import Sprite
from support.displays import TERMINALS, Display
from support.ports import free_ports
from support.program import MODULE, Thopters
from support.terminals import PROMPT, Tty
from support.units import make_transport
from support.waiting import until

import thopters as program

pytestmark = pytest.mark.slow

ENVIRON = dict(os.environ)  # as it is for pip, before a fixture seals it
PATH = ENVIRON.get("PATH", os.defpath) + os.pathsep + "/usr/sbin"
ESCAPE, F5, F7, F10, END = "\x1b", "\x1b[15~", "\x1b[18~", "\x1b[21~", "\x1b[F"
COLUMNS, ROWS = 80, 24


def need(*programs: str) -> None:
    for name in programs:
        if not shutil.which(name, path=PATH):
            pytest.skip(f"{name} is not installed")


def path_of(name: str) -> str:
    path = shutil.which(name, path=PATH)
    assert path
    return path


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that installs a package from PyPI, and returns the environment it is in."""
    known: dict[str, Path] = {}

    def install(package: str) -> Path:
        if package not in known:
            folder = known[package] = tmp_path_factory.mktemp("packages")
            words = ["install", "--quiet", "--disable-pip-version-check", package]
            for argv in ([sys.executable, "-m", "venv", "."], ["bin/python", "-m", "pip", *words]):
                with contextlib.suppress(OSError):  # there is no environment
                    subprocess.run(argv, cwd=folder, env=ENVIRON, capture_output=True)
        if not list(known[package].glob(f"lib/*/site-packages/{package.partition('=')[0]}")):
            pytest.skip(f"{package} can't be had")
        return known[package]

    return install


# --- programs on a terminal -------------------------------------------------------------


@pytest.fixture
def pyte(install: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Any:
    [packages] = install("pyte==0.8.2").glob("lib/*/site-packages")
    monkeypatch.syspath_prepend(packages)
    return importlib.import_module("pyte")


class Emulation(Tty):
    """The program on a terminal that draws what it is sent, and answers what it is asked."""

    def __init__(self, pyte: Any, thopters: Thopters, *words: str) -> None:
        class Screen(pyte.Screen):  # type: ignore[misc]
            def set_mode(self, *modes: int, **kind: bool) -> None:
                super().set_mode(*modes, **kind)
                if kind.get("private") and 1049 in modes:  # the other screen, which is empty
                    self.erase_in_display(2)

            def select_graphic_rendition(self, *values: int, private: bool = False) -> None:
                if not private:  # as what sets how keys are sent, which pyte takes for colours
                    super().select_graphic_rendition(*values)

            def set_margins(self, *values: int, private: bool = False) -> None:
                if not private:  # as what puts modes back, which it takes for margins
                    super().set_margins(*values)

            def write_process_input(_self, text: str) -> None:
                self.answers += 1
                os.write(self._master, text.encode())

        self.answers = 0
        self._screen = Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        super().__init__(thopters, *words, columns=COLUMNS)

    def take(self, data: bytes) -> None:
        super().take(data)
        self._stream.feed(data)

    def resize(self, columns: int, rows: int) -> None:
        with self._changed:
            self._screen.resize(rows, columns)
        super().resize(columns, rows)

    def drawn(self) -> tuple[list[list[Any]], tuple[int, int]]:
        """Return what is shown: each character with its colours, and where the cursor is."""
        with self._changed:
            screen = self._screen
            rows = [screen.buffer[y] for y in range(screen.lines)]
            cells = [[row[x] for x in range(screen.columns)] for row in rows]
            return cells, (screen.cursor.x, screen.cursor.y)

    @property
    def lines(self) -> str:
        return "\n".join("".join(cell.data for cell in row) for row in self.drawn()[0])

    def await_text(self, text: str) -> None:
        until(lambda: text in self.lines, f"{text!r} is shown")


class Pair:
    """The same program on two terminals, here and in the sprite, in folders of equal content."""

    def __init__(self, pyte: Any, thopters: Thopters, sprite: Sprite, here: Path) -> None:
        self._pyte = pyte
        self._thopters = thopters
        self._local = Thopters(MODULE, here)
        self._local.argv = []
        self._local.env["PATH"] = PATH
        self._local.env["TERM"] = thopters.env["TERM"] = "xterm"
        self.sprite = sprite
        self.folders = (here, sprite.home)
        self.sessions: list[Emulation] = []

    def start(self, way: str, *argv: str, file: bytes) -> None:
        for folder in self.folders:
            (folder / "file").write_bytes(file)
        self.sprite.machine.own(self.sprite.home)
        words = (path_of(argv[0]), *argv[1:])
        self.sessions.append(Emulation(self._pyte, self._local, *words))
        if way == "exec":
            remote = Emulation(self._pyte, self._thopters, "exec", "dev", "--", *words)
            self.sessions.append(remote)
            return
        remote = Emulation(self._pyte, self._thopters, "shell", "dev", "--native")
        self.sessions.append(remote)
        remote.expect(PROMPT)
        remote.type(f"clear; exec {' '.join(words)}\r")

    def play(self, *steps: tuple[str, str]) -> None:
        """Type the keys of each step in both; they come to show its text, and the same."""
        local, remote = self.sessions
        for keys, text in steps:
            for session in self.sessions:
                session.type(keys)
            for session in self.sessions:
                session.await_text(text)
            until(lambda: remote.drawn() == local.drawn(), f"{keys!r} looks the same")

    def end(self, keys: str) -> bytes:
        """Leave the program by these keys, and return the file, the same in both folders."""
        for session in self.sessions:
            session.type(keys)
        for session in self.sessions:
            assert session.end_restored() == 0
        here, there = [(folder / "file").read_bytes() for folder in self.folders]
        assert there == here
        return there

    def close(self) -> None:
        for session in self.sessions:
            session.close()


@pytest.fixture
def pair(pyte: Any, thopters: Thopters, dev: Emulator, tmp_path: Path) -> Iterator[Pair]:
    (here := tmp_path / "here").mkdir()
    pair = Pair(pyte, thopters, dev.sprite("dev"), here)
    yield pair
    pair.close()


TEXT = "".join(f"{n} größe 漢字 {'x' * (n % 70)}\n" for n in range(200)).encode() + b"needle\n"
by_both_ways = pytest.mark.parametrize("way", ["exec", "shell"])


@by_both_ways
def test_vim_edits_a_file(pair: Pair, way: str) -> None:
    need("vim")
    pair.start(way, "vim", "-u", "NONE", "-i", "NONE", "-N", "-n", "file", file=TEXT + b"\0\r")
    pair.play(
        ("", "3 größe 漢字"),
        ("/needle\r", "needle"),
        ("oa line, größe 漢字 \x16\t." + ESCAPE, "a line, größe"),
        (":set number\r", "202 "),
        ("gg3dd", "3 größe"),
        (":%s/größe/size/g\r", "size 漢字"),
        ("ggV3jJ:vsplit\r", "size"),
    )
    for session in pair.sessions:
        session.resize(60, ROWS)
    pair.play(("\x0c", "size"))
    saved = pair.end(":wqa\r")
    assert "a line, size 漢字 \t.\n".encode() in saved and saved.endswith(b"\0\r\n")
    assert pair.sessions[1].answers


@by_both_ways
def test_less_shows_a_file(pair: Pair, way: str) -> None:
    need("less")
    pair.start(way, "less", "-R", "file", file=TEXT + b"\x1b[31mred\x1b[0m\n")
    pair.play(
        ("", "3 größe"),
        (" ", "40 größe"),
        ("/199\r", "199 größe"),
        ("G", "red"),
        ("gjj\x1b[B", "3 größe"),
    )
    pair.end("q")


@by_both_ways
def test_nano_edits_a_file(pair: Pair, way: str) -> None:
    need("nano")
    pair.start(way, "nano", "--ignorercfiles", "file", file=TEXT)
    pair.play(
        ("", "3 größe"),
        ("typed größe 漢字\r", "typed größe"),
        ("\x0b\x0b\x1b[B\x15", "2 größe"),
        ("\x17needle\r", "needle"),
        ("\x0f", "Write"),
        ("\r", "Wrote"),
    )
    saved = pair.end("\x18")
    assert saved.startswith("typed größe 漢字\n2 größe".encode())


@by_both_ways
def test_mc_makes_folders_and_copies(pair: Pair, way: str) -> None:
    """What it shows of a disk is not the same here and there; what it does is."""
    need("mc")
    pair.start(way, "mc", "--nosubshell", file=TEXT)
    for session, folder in zip(pair.sessions, pair.folders, strict=True):
        session.await_text("Quit")
        session.type(F7)
        session.await_text("Create a new Directory")
        session.type("größe\r")
        session.await_text("/größe")
        session.type(END)  # the last in the list is the file
        session.type(F5)
        session.await_text("Copy file")
        session.type("größe/copy\r")
        until((folder / "größe" / "copy").exists, "it is copied")
        until(lambda: "Copy file" not in session.lines, "it is done")  # noqa: B023
        session.type(F10)
    pair.end("")
    for folder in pair.folders:
        assert (folder / "größe" / "copy").read_bytes() == TEXT


# --- programs made with a framework -----------------------------------------------------

INK = """\
import { writeFileSync } from 'node:fs';
import { createElement as make, useEffect, useState } from 'react';
import { Box, Static, Text, render, useApp, useInput, useStdout } from 'ink';

function Program() {
  const { exit } = useApp();
  const { stdout } = useStdout();
  const [told, tell] = useState({ typed: '', lines: [], chosen: 0 });
  const [columns, setColumns] = useState(stdout.columns);
  useEffect(() => {
    const resized = () => setColumns(stdout.columns);
    stdout.on('resize', resized);
    return () => stdout.off('resize', resized);
  }, []);
  useEffect(() => writeFileSync('file', told.lines.concat(told.typed).join('\\n')), [told]);
  useInput((input, key) => {
    if (key.escape) exit();
    else tell(({ typed, lines, chosen }) => {
      if (key.return) return { typed: '', lines: [...lines, typed], chosen };
      if (key.backspace || key.delete) typed = [...typed].slice(0, -1).join('');
      else if (key.downArrow) chosen += 1;
      else if (key.upArrow) chosen -= 1;
      else typed += input;
      return { typed, lines, chosen };
    });
  });
  const rows = ['größe', '漢字', 'plain'].map((text, row) => make(
    Text, { key: row, color: row === told.chosen ? 'green' : undefined, wrap: 'truncate' },
    (row === told.chosen ? '> ' : '  ') + text.repeat(20)));
  const frame = { borderStyle: 'round', borderColor: 'cyan', flexDirection: 'column', columns };
  return make(Box, { flexDirection: 'column' },
    make(Static, { items: told.lines }, (line, at) => make(Text, { key: at, bold: true }, line)),
    make(Box, { ...frame, width: columns }, ...rows),
    make(Text, { inverse: true }, `${told.lines.length}:${told.chosen}:${columns}:${told.typed}.`));
}
render(make(Program));
"""

BLESSED = """\
import { writeFileSync } from 'node:fs';
import blessed from 'blessed';

const screen = blessed.screen({ smartCSR: true, fullUnicode: true, resizeTimeout: 1 });
const border = { type: 'line' };
const list = blessed.list({
  parent: screen, width: '50%', height: '100%-1', border, keys: true, mouse: true,
  style: { selected: { bg: 'blue', fg: 'white' }, border: { fg: 'green' } },
  items: Array.from({ length: 60 }, (_, row) => `row ${row} 漢字 größe`),
});
const log = blessed.log({
  parent: screen, left: '50%', width: '50%', height: '100%-1', border, label: ' log ',
});
const line = blessed.textbox({ parent: screen, bottom: 0, height: 1, style: { bg: 'red' } });
const lines = [];
const tell = text => {
  lines.push(text);
  log.log(text);
  writeFileSync('file', lines.join('\\n'));
  screen.render();
};
list.on('select item', (_, row) => log.setLabel(` row ${row} `));
list.on('select', (_, row) => tell(`chosen ${row}`));
screen.on('resize', () => tell(`size ${screen.width} ${screen.height}`));
list.key('i', () => {
  log.setLabel(' typing ');
  line.readInput((_, text) => {
    line.clearValue();
    list.focus();
    tell(`typed ${text}`);
  });
  screen.render();
});
list.key('q', () => process.exit(0));
list.focus();
screen.render();
"""
DOWN, UP, WHEEL_UP = "\x1b[B", "\x1b[A", "\x1b[<64;10;5M"


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install packages from npm, and return the folder that they are in."""
    need("node", "npm")
    folder = tmp_path_factory.mktemp("npm")
    packages = ["ink@6.8.0", "react@19.2.0", "blessed@0.1.81"]
    words = ["npm", "install", "--no-audit", "--no-fund", "--prefix", ".", *packages]
    with contextlib.suppress(subprocess.TimeoutExpired):  # there is no network
        subprocess.run(words, cwd=folder, env=ENVIRON, capture_output=True, timeout=240)
    for package in ("ink", "blessed"):
        probe = ["node", "--input-type=module", "-e", f"await import('{package}')"]
        done = subprocess.run(probe, cwd=folder, env=ENVIRON, capture_output=True)
        if done.returncode:
            pytest.skip(f"{package} can't be had, or wants another Node")
    return folder / "node_modules"


def add_program(pair: Pair, text: str, node_modules: Path) -> None:
    here, there = pair.folders
    (here / "node_modules").symlink_to(node_modules)
    shutil.copytree(node_modules, there / "node_modules", symlinks=True)
    for folder in pair.folders:
        (folder / "program.mjs").write_text(text)


@by_both_ways
def test_ink_shows_what_is_typed(pair: Pair, node_modules: Path, way: str) -> None:
    add_program(pair, INK, node_modules)
    pair.start(way, "node", "program.mjs", file=b"")
    pair.play(
        ("", "0:0:80:."),
        ("größe 漢字", "0:0:80:größe 漢字."),
        ("\x7f", "0:0:80:größe 漢."),
        ("\r", "1:0:80:."),
        (DOWN, "1:1:80:."),
    )
    for session in pair.sessions:
        session.resize(60, 20)
    pair.play(("", "1:1:60:."), (DOWN, "1:2:60:."), (UP, "1:1:60:."), ("last", "1:1:60:last."))
    saved = pair.end(ESCAPE)
    assert saved.startswith("größe 漢\n".encode()) and saved.endswith(b"last")


@by_both_ways
def test_blessed_draws_its_widgets(pair: Pair, node_modules: Path, way: str) -> None:
    add_program(pair, BLESSED, node_modules)
    pair.start(way, "node", "program.mjs", file=b"")
    pair.play(
        ("", "row 20"),
        (DOWN * 30, " row 30 "),
        ("\r", "chosen 30"),
        ("i", " typing "),
        ("größe 漢字", "größe 漢字"),
        ("\r", "typed größe 漢字"),
        (WHEEL_UP, " row 28 "),
        (UP, " row 27 "),
    )
    for session in pair.sessions:
        session.resize(60, 20)
    pair.play(("", "size 60 20"), ("\r", "chosen 27"))
    saved = pair.end("q")
    assert saved.startswith("chosen 30\ntyped größe 漢字\n".encode())


# --- real terminals ---------------------------------------------------------------------

# It asks a terminal for its modes and settings; the answer to the last question comes from each
ASK_FOR_STATE = """\
import os, pathlib, re, sys, termios, tty
before = termios.tcgetattr(0)
tty.setraw(0)
modes = (1, 5, 6, 7, 9, 25, 47, 66, 69, 1000, 1002, 1003, 1004, 1005, 1006, 1015, 1016,
         1047, 1049, 2004, 2026, 2031, 2048)
asked = "".join(f"\\x1b[?{mode}$p" for mode in modes) + "\\x1b[4$p\\x1b[20$p"
asked += "".join(f"\\x1bP$q{setting}\\x1b\\\\" for setting in ("r", "s", "m", " q"))
os.write(1, f"{asked}\\x1b[?4m\\x1b[?u\\x1b[1$w\\x1b[c".encode())
told = b""
while not re.search(rb"\\x1b\\[\\?[0-9;]*c", told):
    told += os.read(0, 4096)
termios.tcsetattr(0, termios.TCSADRAIN, before)
told = re.sub(rb"(\\x1bP1\\$u)[0-9]+;[0-9]+", rb"\\1", told)  # but for where the cursor is
pathlib.Path(sys.argv[1]).write_bytes(told)
"""
LEFT_BEHIND = {
    # apt's bar below a scroll region; insert mode; modes of the cursor, mouse, focus and pastes
    "\\033[1;20r\\033[21;1H\\033[42;30mbar\\033[4;20h\\033[?1;5h\\033[?7;25l\\033=\\033[6 q"
    "\\033[?1000;1002;1003;1004;1006;2004;2026h": "",
    # margins, line drawing, colours, a link; two ways of sending keys
    "\\033[?69h\\033[5;60s\\033[3;9r\\033[?6h\\033[1;4;7;38;5;1m\\033]8;;http://a\\033\\\\"
    "\\033)0\\016\\033[>4;2m\\033[>31u": "\\033]0;a title that is cut",
    # the other screen
    "\\033(0\\033[?1049h\\033[5;10r\\033[=5u\\033[?1015;1016;9h\\033[4mdrawn": "\\033[38;5;1",
}


@pytest.mark.parametrize("terminal", TERMINALS)
@pytest.mark.parametrize(("left_behind", "cut"), LEFT_BEHIND.items())
def test_p11_ctrl_backslash_leaves_a_real_terminal_clean(
    thopters: Thopters, dev: Emulator, tmp_path: Path, terminal: str, left_behind: str, cut: str
) -> None:
    """The program in the sprite knows by an answer that the terminal has all but what is cut."""
    there = dev.sprite("dev").home
    (there / "dirty").write_text(
        f"stty raw -echo; printf '{left_behind}\\033[c'; head -c 1 > answer\n"
        f"printf '{cut}'; touch up; sleep 300"
    )
    (tmp_path / "ask.py").write_text(ASK_FOR_STATE)
    remote = shlex.join([*thopters.argv, "exec", "dev", "--", "sh", "dirty"])
    ask = f"{sys.executable} ask.py"
    usual = "printf '\\033[0 q'"  # the cursor's shape, which xterm tells of only once it is set
    script = f"cd {tmp_path}; {usual}; {ask} before; {remote}; echo $? > status; {ask} after"
    with Display(terminal, tmp_path, ["sh", "-c", script], thopters.env) as display:
        until(lambda: (there / "up").exists() or display.has_ended, "the program runs")
        assert not display.has_ended, (tmp_path / "log").read_text()
        display.type("ctrl+backslash")
        until(lambda: display.has_ended, "it is left")
    before, after = [(tmp_path / name).read_bytes() for name in ("before", "after")]
    assert (tmp_path / "status").read_text() == "0\n"
    assert after == before and before.count(b"$y") == 25


# --- programs that bring their own protocol ---------------------------------------------


def content(folder: Path) -> dict[str, str]:
    """Return the digest of each file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


def furnish(folder: Path) -> None:
    """Make 200 files of odd names and sizes."""
    rng = random.Random(1)
    for number in range(200):
        place = folder / f"d {number % 7}" / "größe"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number} 'a\n").write_bytes(rng.randbytes(rng.choice((0, 1, 4096, 70_001))))


def run(argv: list[str], thopters: Thopters, **env: str) -> str:
    """Run a program that finds thopters as its transport, and return what it printed."""
    done = subprocess.run(
        argv,
        cwd=thopters.home,
        env=thopters.env | {"PATH": PATH} | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=240,
    )
    assert done.returncode == 0, done
    return done.stdout.decode()


@pytest.fixture
def remote_shell(thopters: Thopters) -> str:
    """Return a program that is called like ssh: `NAME WORDS...`, which a shell there runs."""
    path = thopters.home / "remote-shell"
    call = shlex.join([*thopters.argv, "exec", "-i"])
    path.write_text(f'#!/bin/sh\nname=$1; shift\nexec {call} "$name" -- sh -c "$*"\n')
    path.chmod(0o755)
    return str(path)


def test_rsync_goes_both_ways(thopters: Thopters, dev: Emulator, remote_shell: str) -> None:
    need("rsync")
    furnish(source := thopters.home / "source")
    there = dev.sprite("dev").home / "there"
    for _ in range(2):  # the second time it has only changes to send
        run(["rsync", "-a", "--delete", "-e", remote_shell, "source/", "dev:there/"], thopters)
        assert content(there) == content(source) and len(content(there)) >= 199
        (source / "d 1" / "größe" / "1 'a\n").write_bytes(b"changed")
        (source / "d 2" / "größe" / "2 'a\n").unlink(missing_ok=True)
    run(["rsync", "-az", "-e", remote_shell, "dev:there/", "back/"], thopters)
    assert content(thopters.home / "back") == content(there)


@pytest.mark.parametrize("way", ["ssh", "ext"])
def test_git_clones_and_pushes(
    thopters: Thopters, dev: Emulator, remote_shell: str, way: str
) -> None:
    need("git")
    identity = {
        f"GIT_{who}_{what}": "a@b.c"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    env = identity | {"GIT_SSH_COMMAND": remote_shell, "GIT_SSH_VARIANT": "simple"}
    env |= {"GIT_ALLOW_PROTOCOL": "ssh:ext", "GIT_CONFIG_NOSYSTEM": "1"}
    call = " ".join([*thopters.argv, "exec", "-i", "dev", "--"])
    address = {"ssh": "dev:repo.git", "ext": f"ext::{call} %S repo.git"}[way]
    assert thopters("exec", "dev", "--", "git", "init", "-q", "--bare", "repo.git").code == 0
    run(["git", "clone", "-q", address, "work"], thopters, **env)
    furnish(thopters.home / "work")
    for words in (["add", "."], ["commit", "-qm", "all"], ["push", "-q", "origin", "HEAD:main"]):
        run(["git", "-C", "work", *words], thopters, **env)
    run(["git", "clone", "-q", "-b", "main", address, "again"], thopters, **env)
    assert content(thopters.home / "again") == content(thopters.home / "work")
    head = run(["git", "-C", "again", "rev-parse", "HEAD"], thopters, **env).strip()
    done = thopters("exec", "dev", "--", "git", "-C", "repo.git", "fsck", "--strict")
    assert done.code == 0, done
    assert (
        thopters("exec", "dev", "--", "git", "-C", "repo.git", "log", "main").out.count(head) == 1
    )


# --- servers in the sprite --------------------------------------------------------------


@pytest.fixture
def user(thopters: Thopters, dev: Emulator) -> str:
    """Return the name of the sprite's user, who has one where the sprite has mounts of its own."""
    done = thopters("exec", "dev", "--", "id", "-un")
    if done.code:
        pytest.skip("the sprite's user has no name, and servers want one")
    return done.out.strip()


class Sshd:
    """An ssh server in the sprite for its own user, and what a client here needs to know."""

    def __init__(self, thopters: Thopters, dev: Emulator, user: str) -> None:
        self.sprite = dev.sprite("dev")
        folder = thopters.home / "ssh"
        folder.mkdir(mode=0o700)
        for name in ("host", "user"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
        (self.sprite.home / "ssh").mkdir()
        for name, kept in (("host", "host"), ("user.pub", "authorized")):
            shutil.copy(folder / name, self.sprite.home / "ssh" / kept)
        there = Path(self.sprite.machine.home_inside) / "ssh"
        self.server = [
            path_of("sshd"), "-f", "/dev/null", "-o", f"HostKey={there}/host",
            "-o", f"AuthorizedKeysFile={there}/authorized", "-o", "StrictModes=no",
            "-o", "UsePAM=no", "-o", "PidFile=none", "-o", "Subsystem=sftp internal-sftp",
        ]  # fmt: skip
        self.sprite.machine.own(self.sprite.home)
        (folder / "config").write_text(
            f"Host *\n  IdentityFile {folder / 'user'}\n  UserKnownHostsFile {folder / 'known'}\n"
            "  StrictHostKeyChecking accept-new\n  BatchMode yes\n  IdentitiesOnly yes\n"
        )
        self.config = folder / "config"
        self.user = user


@pytest.fixture
def sshd(thopters: Thopters, dev: Emulator, user: str) -> Sshd:
    need("sshd", "ssh", "ssh-keygen", "scp")
    return Sshd(thopters, dev, user)


def test_ssh_through_a_proxy_command(thopters: Thopters, dev: Emulator, sshd: Sshd) -> None:
    command = shlex.join([*thopters.argv, "exec", "-i", "dev", "--", *sshd.server, "-i"])
    options = ["-F", str(sshd.config), "-o", f"ProxyCommand={command}"]
    where = f"{sshd.user}@dev"
    furnish(source := thopters.home / "source")
    said = run(["ssh", *options, where, "echo there; id -un"], thopters)
    assert said.split() == ["there", sshd.user]
    run(["scp", "-qr", *options, "source", f"{where}:{sshd.sprite.machine.home_inside}/"], thopters)
    assert content(sshd.sprite.home / "source") == content(source)
    run(
        ["scp", "-qr", *options, f"{where}:{sshd.sprite.machine.home_inside}/source", "b"], thopters
    )
    assert content(thopters.home / "b") == content(source)


@contextlib.contextmanager
def served(thopters: Thopters, *argv: str, port: int) -> Iterator[int]:
    """Run a server in the sprite, forward its port, and yield the local one."""
    (local,) = free_ports(1)
    server = thopters.start("exec", "dev", "--", *argv)
    until(lambda: accepts(port) or server.poll() is not None, "the server listens")
    assert server.poll() is None, server.communicate()
    proxy = thopters.start("proxy", "dev", f"{local}:{port}", "--native")
    assert proxy.stdout and proxy.stdout.readline()
    yield local
    for process in (proxy, server):
        process.send_signal(signal.SIGINT)
        process.wait(60)


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def test_ansible_over_a_forwarded_port(thopters: Thopters, sshd: Sshd) -> None:
    need("ansible")
    (port,) = free_ports(1)
    there = Path(sshd.sprite.machine.home_inside)
    (thopters.home / "f").write_bytes(random.Random(1).randbytes(1_000_000))
    words = [*sshd.server, "-D", "-p", str(port), "-o", "ListenAddress=127.0.0.1"]
    with served(thopters, *words, port=port) as local:
        (thopters.home / "inventory").write_text(
            f"dev ansible_host=localhost ansible_port={local} ansible_user={sshd.user} "
            "ansible_ssh_use_tty=false ansible_ssh_args='' "  # a tty is root's to give away
            f"ansible_ssh_common_args='-F {sshd.config}'\n"
        )
        for module, arguments in (
            ("ping", ""),
            ("copy", f"src=f dest={there}/copied mode=0600"),
            ("fetch", f"src={there}/copied dest=back flat=yes"),
        ):
            run(["ansible", "all", "-i", "inventory", "-m", module, "-a", arguments], thopters)
    for copy in (sshd.sprite.home / "copied", thopters.home / "back"):
        assert copy.read_bytes() == (thopters.home / "f").read_bytes()


def test_pgbench_over_a_forwarded_port(thopters: Thopters, user: str) -> None:
    need("initdb", "postgres", "pgbench", "psql")
    (port,) = free_ports(1)
    words = [path_of("initdb"), "-D", "pg", "-U", "bench", "-A", "trust", "--no-locale", "-N"]
    assert thopters("exec", "dev", "--", *words, timeout=240).code == 0
    words = [path_of("postgres"), "-D", "pg", "-h", "127.0.0.1", "-p", str(port), "-k", ""]
    with served(thopters, *words, port=port) as local:
        where = ["-h", "127.0.0.1", "-p", str(local), "-U", "bench", "postgres"]
        run(["pgbench", "-q", "-i", *where], thopters)
        run(["pgbench", "-c", "4", "-j", "2", "-t", "50", *where], thopters)
        question = (
            "select count(*), (select sum(abalance) from pgbench_accounts) = sum(delta) "
            "from pgbench_history"
        )
        assert run(["psql", "-Atc", question, *where], thopters) == "200|t\n"


# --- the public WebSocket test suite ----------------------------------------------------


def echo(transport: program.Transport, target: str) -> list[bytes]:
    """Open a WebSocket, send each message back until it ends, and return them all.

    Whether a text is UTF-8 is looked at by who reads it, so here.
    """
    websocket = program.open_websocket(transport, target, 30.0)
    assert isinstance(websocket, program.WebSocket)
    came = []
    with contextlib.suppress(program.WebSocketLost, UnicodeDecodeError):
        while True:
            for opcode, payload in websocket.messages():
                came.append(bytes(payload))
                if opcode == program.OP_TEXT:
                    came[-1].decode()
                websocket.send(opcode, came[-1])
                while websocket.unsent():
                    websocket.drain(1.0)
            websocket.wait(1.0)
    websocket.close()
    return came


def test_the_public_websocket_test_suite(install: Callable[[str], Path], tmp_path: Path) -> None:
    """All but the cases of compression, which we do not offer."""
    folder, (port,) = install("kosoku==0.1.0"), free_ports(1)
    words = ["-m", "fuzzingserver", f"127.0.0.1:{port}", "-o", "out", "-x", "12.*", "-x", "13.*"]
    suite = subprocess.Popen(
        [folder / "bin" / "kosoku", *words], cwd=tmp_path, stdout=subprocess.PIPE
    )
    with suite:
        until(lambda: accepts(port), "the suite listens")
        transport = make_transport(program.Clock(), f"http://127.0.0.1:{port}")
        count = int(echo(transport, "/getCaseCount")[0])
        for number in range(1, count + 1):
            echo(transport, f"/runCase?case={number}&agent=thopters")
        echo(transport, "/updateReports?agent=thopters")
        suite.wait(60)
    cases = json.loads((tmp_path / "out" / "index.json").read_text())["thopters"]
    assert len(cases) == count > 250
    good = ("OK", "NON-STRICT", "INFORMATIONAL")
    bad = {case for case, told in cases.items() if told["behavior"] not in good}
    # we leave after a close that is none, as we should, and say 1000 where it should be 1002
    assert bad <= {"7.3.2", "7.3.6", "7.5.1", *(f"7.9.{number}" for number in range(1, 14))}
    assert {cases[case]["behaviorClose"] for case in bad} <= {"WRONG CODE"}
