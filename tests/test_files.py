"""`cp`: what arrives is whole and the same, and nothing gets out of its destination."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import termios
import threading
import unicodedata
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator, Fault, exec
from emulation.machine import namespace_kind
from emulation.state import Sprite
from support.copies import (
    archive,
    described,
    evil,
    leftovers,
    member,
    pack,
    put_program,
    put_tar,
    same,
    unpack,
)
from support.program import MODULE, Thopters, both
from support.sessions import needs_namespace
from support.waiting import until

import thopters as program

tree_tools = pytest.mark.skipif(not shutil.which("diff"), reason="diff is not installed")


def furnish(folder: Path) -> None:
    """Make every kind of entry that is copied."""
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "a b\nc").write_bytes(b"text")
    (folder / "-n").write_bytes(b"")
    (folder / os.fsdecode(b"\xff\xfe")).write_bytes(b"bytes")
    (folder / "sub" / "big").write_bytes(os.urandom(3_000_000))
    (folder / "sub" / "sparse").write_bytes(b"")
    os.truncate(folder / "sub" / "sparse", 1_000_000)
    (folder / "link").symlink_to("a b\nc")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "run.sh").write_bytes(b"#!/bin/sh\n")
    (folder / "run.sh").chmod(0o751)
    os.utime(folder / "run.sh", (1_000_000_000.5, 1_000_000_000.5))
    (folder / "sub").chmod(0o555)


def fold(name: str) -> str:
    return unicodedata.normalize("NFD", name).casefold()


@pytest.mark.parametrize(
    ("names", "clash"),
    [
        (["README", "readme"], "readme"),
        (["caf\u00e9", "cafe\u0301"], "cafe\u0301"),
        (["Lib/", "Lib/a", "lib/", "lib/b"], "lib"),
        (["x/Notes", "notes", "x/NOTES"], "x/NOTES"),
        (["Lib/a", "Lib/", "Lib/b", "Lib/"], ""),
    ],
)
def test_names_that_are_one_on_our_disk_are_not_put_over_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], clash: str
) -> None:
    """As on those of macOS and Windows, which take names that differ in case for the same."""
    make_folder, make_file = os.mkdir, os.open

    def find(name: str, folder: int | None) -> str:
        return next((n for n in os.listdir(folder) if fold(n) == fold(name)), name)

    def mkdir(name: str, mode: int = 0o777, dir_fd: int | None = None) -> None:
        make_folder(find(name, dir_fd) if dir_fd else name, mode, dir_fd=dir_fd)

    def open_file(name: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        return make_file(find(name, dir_fd) if dir_fd else name, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "O_PATH", 0)
    folders = [name.endswith("/") for name in names]
    kinds = [tarfile.DIRTYPE if is_folder else tarfile.REGTYPE for is_folder in folders]
    pairs = zip(names, kinds, strict=True)
    data = archive(*(member(name.rstrip("/"), kind, mode=0o755) for name, kind in pairs))
    copy = unpack(tmp_path, data)
    if not clash:
        assert copy.error is None
        assert sorted(os.listdir(tmp_path / "t" / "Lib")) == ["a", "b"]
        return
    assert f"takes ./{clash} for another name" in str(copy.error)


@both
@tree_tools
def test_a_round_trip_changes_nothing(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    furnish(source := thopters.home / "project")
    assert thopters("cp", "project", "dev:").code == 0
    assert thopters("cp", "dev:project", "back").code == 0
    same(source, thopters.home / "back")
    before, after = described(source), described(thopters.home / "back")
    assert before == after
    assert (thopters.home / "back" / "sub").stat().st_mode & 0o777 == 0o555
    assert not leftovers(sprite.home, thopters.home)
    assert len(emulator.journal.requests("WS")) == 2


@pytest.mark.skipif(not shutil.which("rsync"), reason="rsync is not installed")
def test_rsync_finds_nothing_to_do_after_a_round_trip(thopters: Thopters, sprite: Sprite) -> None:
    furnish(source := thopters.home / "project")
    (source / "hard").hardlink_to(source / "run.sh")
    for words in (["project", "dev:"], ["dev:project", "back"]):
        assert thopters("cp", *words).code == 0
    for copy in (sprite.home / "project", thopters.home / "back"):
        options = ["-n", "-rlptHi", "--checksum", "--delete", "--omit-dir-times"]
        told = subprocess.run(
            ["rsync", *options, f"{source}/", f"{copy}/"], capture_output=True, check=True
        )
        assert told.stdout == b""


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_files_go_over_one_connection(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, count: int
) -> None:
    (many := thopters.home / "many").mkdir()
    for number in range(count):
        (many / str(number)).write_bytes(b"%d" % number)
    assert thopters("cp", "many", "dev:").code == 0
    assert len(emulator.journal.requests("WS")) == 1
    assert len(list((sprite.home / "many").iterdir())) == count
    assert (sprite.home / "many" / "999").read_bytes() == b"999"


def test_into_a_directory_as_it_and_over_what_is_there(thopters: Thopters, sprite: Sprite) -> None:
    (thopters.home / "d" / "x").mkdir(parents=True)
    (thopters.home / "d" / "f").write_text("new")
    assert thopters("cp", "d", "dev:e").code == 0  # as e
    assert (sprite.home / "e" / "f").read_text() == "new"
    (thopters.home / "d" / "f").write_text("newer")
    (sprite.home / "old").mkdir()
    (sprite.home / "old" / "d").mkdir()
    (sprite.home / "old" / "d" / "kept").write_text("kept")
    (sprite.home / "old" / "d" / "f").write_text("old")
    sprite.machine.own(sprite.home)
    assert thopters("cp", "d", "dev:old").code == 0  # into old, merged
    assert (sprite.home / "old" / "d" / "kept").read_text() == "kept"
    assert (sprite.home / "old" / "d" / "f").read_text() == "newer"
    (thopters.home / "here" / "d").mkdir(parents=True)
    (thopters.home / "here" / "d" / "mine").write_text("mine")
    assert thopters("cp", "dev:old/d", "here").code == 0
    names = sorted(path.name for path in (thopters.home / "here" / "d").iterdir())
    assert names == ["f", "kept", "mine", "x"]


@pytest.mark.parametrize("out", [False, True])
@pytest.mark.parametrize("source", ["d/.", "d/./", "d/e/.."])
@pytest.mark.parametrize("there", [False, True])
def test_what_is_in_a_directory_is_copied_without_it(
    thopters: Thopters, sprite: Sprite, out: bool, source: str, there: bool
) -> None:
    here, target = (sprite.home, thopters.home) if out else (thopters.home, sprite.home)
    (here / "d" / "e").mkdir(parents=True)
    (here / "d" / ".f").write_text("f")
    (here / "d").chmod(0o750)
    if there:
        (target / "to" / "e").mkdir(parents=True)
        (target / "to" / "e" / "kept").write_text("kept")
    sprite.machine.own(sprite.home)
    done = thopters("cp", f"dev:{source}", "to") if out else thopters("cp", source, "dev:to")
    assert (done.code, done.err) == (0, ""), done
    assert sorted(os.listdir(target / "to")) == [".f", "e"]
    assert os.listdir(target / "to" / "e") == (["kept"] if there else [])
    assert there or (target / "to").stat().st_mode & 0o777 == 0o750
    assert not leftovers(target, target / "to")


def test_all_of_a_sprites_directory_is_copied_when_it_has_no_name(
    thopters: Thopters, sprite: Sprite
) -> None:
    (sprite.home / "f").write_text("f")
    assert thopters("cp", "dev:", "to").code == 0
    same(sprite.home, thopters.home / "to")


def test_a_link_to_a_directory_is_followed_with_a_slash_behind_it(
    thopters: Thopters, sprite: Sprite
) -> None:
    (thopters.home / "d").mkdir()
    (thopters.home / "d" / "f").write_text("f")
    (thopters.home / "l").symlink_to("d")
    assert thopters("cp", "l/", "dev:").code == 0
    assert not (sprite.home / "l").is_symlink()
    assert (sprite.home / "l" / "f").read_text() == "f"


@pytest.mark.parametrize("out", [False, True])
def test_where_one_thing_does_not_fit_nothing_is_put(
    thopters: Thopters, sprite: Sprite, out: bool
) -> None:
    source, target = (sprite.home, thopters.home) if out else (thopters.home, sprite.home)
    for name in ("a", "b", "z"):
        (source / "d" / name).mkdir(parents=True)
        (source / "d" / name / "f").write_text("new")
        (target / "d" / name).mkdir(parents=True)
        (target / "d" / name / "f").write_text("old")
    (target / "d" / "b" / "f").unlink()
    (target / "d" / "b" / "f").mkdir()
    sprite.machine.own(sprite.home)
    done = thopters("cp", "dev:d", ".") if out else thopters("cp", "d", "dev:")
    assert (done.code, done.out) == (1, "")
    assert re.search(r"cannot replace .*d/b/f by a file\nhint: nothing was put in place", done.err)
    assert [(target / "d" / name / "f").read_text() for name in "az"] == ["old", "old"]
    assert not leftovers(target)


@pytest.mark.parametrize("out", [False, True])
def test_a_directory_that_nobody_may_write_in_is_merged(
    thopters: Thopters, sprite: Sprite, out: bool
) -> None:
    source, target = (sprite.home, thopters.home) if out else (thopters.home, sprite.home)
    if os.geteuid() == 0:  # which may write everywhere
        words = ("--bounding-set", "-dac_override,-dac_read_search")
        thopters.argv = [shutil.which("setpriv") or "setpriv", *words, *thopters.argv]
    for text in ("one", "two"):
        shutil.rmtree(source / "d", ignore_errors=True)
        (source / "d" / "sub").mkdir(parents=True)
        (source / "d" / "sub" / "f").write_text(text)
        (source / "d" / "sub").chmod(0o555)
        sprite.machine.own(sprite.home)
        words = ("dev:d", ".") if out else ("d", "dev:")
        done = thopters("cp", *words)
        assert (done.code, done.err) == (0, ""), done
        assert (target / "d" / "sub" / "f").read_text() == text
        assert (target / "d" / "sub").stat().st_mode & 0o777 == 0o555
        assert not leftovers(target)


def test_a_folder_that_nobody_may_write_in_stays_so_when_nothing_can_be_moved(
    tmp_path: Path,
) -> None:
    source, target = tmp_path / "from" / "d", tmp_path / "to"
    source.mkdir(parents=True)
    (target / "d" / "f").mkdir(parents=True)
    for folder in (source, target):
        folder.chmod(0o555)
    trees = program.Tree(str(source.parent)), program.Tree(str(target))
    with trees[0], trees[1], pytest.raises(OSError, match="not empty"):
        program.Placing(*trees, "").move("d", "d")
    assert [folder.stat().st_mode & 0o777 for folder in (source, target)] == [0o555, 0o555]


MODES = {"contents": ("d/.", "dev:", "."), "merged": ("d", "dev:", "d")}


@pytest.mark.parametrize("case", MODES)
@pytest.mark.parametrize("new", [0o777, 0o555, 0o700])
def test_a_directory_that_is_there_keeps_its_mode(
    thopters: Thopters, sprite: Sprite, case: str, new: int
) -> None:
    """As with cp; what is put at a home's mode may not lock its owner out."""
    source, target, merged = MODES[case]
    folder = thopters.home / "d"
    (folder / "sub" / "new").mkdir(parents=True)
    (folder / "sub" / "f").write_text("x")
    (sprite.home / merged / "sub").mkdir(parents=True)
    for path in (folder / "sub" / "new", folder / "sub", folder):
        path.chmod(new)
    for path in (sprite.home / merged, sprite.home / merged / "sub"):
        path.chmod(0o750)
    sprite.machine.own(sprite.home)
    assert thopters("cp", source, target).code == 0
    there = sprite.home / merged
    modes = [path.stat().st_mode & 0o777 for path in (there, there / "sub", there / "sub" / "new")]
    assert modes == [0o750, 0o750, new]
    assert (there / "sub" / "f").read_text() == "x"
    assert not leftovers(sprite.home)


def test_a_directory_of_somebody_elses_is_merged_where_all_may_write(
    thopters: Thopters, sprite: Sprite
) -> None:
    """Such as /tmp, whose times and mode are not ours to set."""
    (thopters.home / "d" / "sub").mkdir(parents=True)
    (thopters.home / "d" / "sub" / "f").write_text("x")
    (sprite.home / "all").mkdir()
    sprite.machine.own(sprite.home)
    if os.geteuid() == 0:
        os.chown(sprite.home / "all", 0, 0)
    (sprite.home / "all").chmod(0o1777)
    for text in ("x", "y"):
        (thopters.home / "d" / "sub" / "f").write_text(text)
        done = thopters("cp", "d/.", "dev:all")
        assert (done.code, done.err) == (0, ""), done
        assert (sprite.home / "all" / "sub" / "f").read_text() == text
    assert (sprite.home / "all").stat().st_mode & 0o7777 == 0o1777


def test_what_was_opened_is_closed_again_when_not_all_can_be(
    thopters: Thopters, sprite: Sprite
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make what is another user's")
    for name in "ab":
        (thopters.home / "d" / name).mkdir(parents=True)
        (thopters.home / "d" / name / "f").write_text("x")
        (sprite.home / "d" / name).mkdir(parents=True)
    (sprite.home / "d" / "a").chmod(0o555)
    sprite.machine.own(sprite.home)
    os.chown(sprite.home / "d" / "b", 0, 0)
    done = thopters("cp", "d", "dev:")
    assert (done.code, done.out) == (1, ""), done
    assert "hint: nothing was put in place" in done.err
    assert (sprite.home / "d" / "a").stat().st_mode & 0o777 == 0o555
    assert not leftovers(sprite.home)


def test_a_directory_that_only_root_could_read_is_merged(
    thopters: Thopters, sprite: Sprite
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root reads what has no mode for it")
    for home in (thopters.home, sprite.home):
        (home / "d" / "sub").mkdir(parents=True)
    (thopters.home / "d" / "sub" / "f").write_text("x")
    for path in (thopters.home / "d" / "sub", thopters.home / "d"):
        path.chmod(0)
    sprite.machine.own(sprite.home)
    assert thopters("cp", "d", "dev:").code == 0
    assert (sprite.home / "d" / "sub" / "f").read_text() == "x"


def test_thousands_of_files_are_put_over_those_that_are_there(
    thopters: Thopters, sprite: Sprite
) -> None:
    """More than one command line can name."""
    names = [f"{number:0250}" for number in range(7000)]
    for home in (thopters.home, sprite.home):
        (home / "d").mkdir()
        for name in names:
            (home / "d" / name).touch()
    (thopters.home / "d" / names[-1]).write_text("new")
    sprite.machine.own(sprite.home)
    done = thopters("cp", "d", "dev:")
    assert (done.code, done.err) == (0, "")
    assert len(os.listdir(sprite.home / "d")) == len(names)
    assert (sprite.home / "d" / names[-1]).read_text() == "new"


@pytest.mark.parametrize("place", ["long", "closed"])
def test_a_destination_that_can_not_be_looked_at(
    thopters: Thopters, sprite: Sprite, place: str
) -> None:
    (sprite.home / "d").mkdir()
    (sprite.home / "d" / "f").write_text("x")
    sprite.machine.own(sprite.home)
    options: dict[str, Any] = {}
    if place == "closed":
        (thopters.home / "d").mkdir()
        options = thopters.as_somebody()
        (thopters.home / "d").chmod(0)
    words = ["dev:d", "."] if place == "closed" else ["dev:d/f", "1" * 300]
    done = thopters("cp", *words, **options)
    if place == "closed":
        (thopters.home / "d").chmod(0o700)
    assert (done.code, done.out) == (1, ""), done
    why = "Permission denied" if place == "closed" else "File name too long"
    assert re.search(f"error: cannot put .* in place: {why}\nhint: nothing was put", done.err)
    assert not leftovers(thopters.home)


def test_a_file_that_is_replaced_from_stdin_keeps_its_mode(
    thopters: Thopters, sprite: Sprite
) -> None:
    for name, mode in (("key", 0o600), ("run.sh", 0o755)):
        (sprite.home / name).write_text("old")
        (sprite.home / name).chmod(mode)
        sprite.machine.own(sprite.home)
        assert thopters("cp", "-", f"dev:{name}", stdin=b"new").code == 0
        assert (sprite.home / name).read_text() == "new"
        assert (sprite.home / name).stat().st_mode & 0o7777 == mode
    assert thopters("cp", "-", "dev:new", stdin=b"new").code == 0
    assert (sprite.home / "new").stat().st_mode & 0o7777 == 0o644


def test_a_file_that_grows_meanwhile_is_copied_with_a_warning(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tar says so by status 1; it has sent as much as the file held at first."""
    real = shutil.which("tar", path="/usr/bin:/bin")
    put_tar(
        sprite,
        monkeypatch,
        f'{real} "$@"; echo "tar: .//f: file changed as we read it" >&2; exit 1',
    )
    (sprite.home / "f").write_text("f")
    sprite.machine.own(sprite.home)
    done = thopters("cp", "dev:f", "g")
    assert (done.code, done.out) == (0, ""), done
    assert done.err == "thopters: warning: f changed while it was read\n"
    assert (thopters.home / "g").read_text() == "f"


def test_why_tar_fails_is_said(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_tar(sprite, monkeypatch, "echo 'tar: the true reason' >&2; echo 'tar: Exiting' >&2; exit 2")
    done = thopters("cp", "dev:.profile", "g")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("thopters: error: cannot copy: tar: the true reason\n")


@pytest.mark.parametrize("out", [False, True])
def test_a_file_takes_no_directorys_place_nor_the_other_way(
    thopters: Thopters, sprite: Sprite, out: bool
) -> None:
    source, target = (sprite.home, thopters.home) if out else (thopters.home, sprite.home)
    (source / "a").write_text("file")
    (source / "b").mkdir()
    (target / "to" / "a").mkdir(parents=True)
    (target / "to" / "b").write_text("file")
    sprite.machine.own(sprite.home)
    for name in ("a", "b"):
        done = thopters("cp", f"dev:{name}", "to") if out else thopters("cp", name, "dev:to")
        assert (done.code, done.out) == (1, ""), done
    assert (target / "to" / "a").is_dir()
    assert (target / "to" / "b").read_text() == "file"
    assert not leftovers(target / "to")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["a", "b"], 2, "one side has to be in a sprite"),
        (["dev:a", "dev:b"], 2, "both sides are in sprites"),
        (["f", "sub/f", "dev:"], 2, "two of the files would be 'f'"),
        (["-", "f", "dev:"], 2, "- stands for one file"),
        (["dev:f", "dev:g", "-"], 2, "- stands for one file"),
        (["nowhere", "dev:"], 1, "there is no "),
        (["dev:nowhere", "."], 1, "there is no "),
        (["f", "dev:no/such/place"], 1, "cannot copy: "),
        (["f", "dev:new/"], 1, "is not a directory"),
        (["dev:.profile", "no/such/place"], 1, "cannot write to no/such"),
        (["dev:.profile", "dev:.bashrc", "new"], 1, "new is not a directory"),
        (["f", "nope:"], 3, "there is no sprite nope"),
        (["dev:wrong/.", "."], 1, "there is no "),
        (["dev:.profile/..", "."], 1, "there is no "),
        (["dev:a/same", "dev:b/same", "sub"], 2, "two of the files would be 'same'"),
        (["dev:.", "dev:.profile", "sub"], 2, "what is in a directory can't be copied with others"),
        (["sub/.", "f", "dev:"], 2, "what is in a directory can't be copied with others"),
        (["f", "2026:x", "dev:"], 2, "a local name with a colon is ./a:b"),
        (["dev:.profile", ""], 1, "'' is not a directory"),
    ],
)
def test_what_can_not_be_copied(
    thopters: Thopters, sprite: Sprite, words: list[str], code: int, says: str
) -> None:
    (thopters.home / "f").write_text("x")
    (thopters.home / "sub").mkdir()
    (thopters.home / "sub" / "f").write_text("x")
    before = sorted(sprite.home.rglob("*"))
    done = thopters("cp", *words)
    assert (done.code, done.out) == (code, ""), done
    assert says in done.err
    assert sorted(sprite.home.rglob("*")) == before
    assert not leftovers(thopters.home)


def test_one_file_by_stdin_and_stdout(thopters: Thopters, sprite: Sprite) -> None:
    data = bytes(range(256)) * 5000
    assert thopters("cp", "-", "dev:piped", stdin=data).code == 0
    assert (sprite.home / "piped").read_bytes() == data
    done = thopters("cp", "dev:piped", "-")
    assert (done.code, done.err, done.out_bytes) == (0, "", data)
    assert thopters("cp", "-", "dev:empty", stdin=b"").code == 0
    assert (sprite.home / "empty").read_bytes() == b""
    assert thopters("cp", "dev:nowhere", "-").code == 1
    (sprite.home / "-").write_bytes(b"a file of that name")
    assert thopters("cp", "dev:-", "-").out == "a file of that name"
    (sprite.home / "folder").mkdir()
    assert thopters("cp", "-", "dev:folder", stdin=data).code == 1
    assert not leftovers(sprite.home)


def test_a_link_to_a_folder_is_not_looked_into(thopters: Thopters, sprite: Sprite) -> None:
    """What is in /etc is neither to be replaced nor, all of it, ours to read."""
    for home in (thopters.home, sprite.home):
        (home / "l").symlink_to("/etc")
    sprite.machine.own(sprite.home)
    done = thopters("cp", "-P", "l", "dev:")
    assert (done.code, done.err) == (0, ""), done
    assert os.readlink(sprite.home / "l") == "/etc"


@pytest.mark.parametrize("words", [["f", "dev:link"], ["-", "dev:link"]])
def test_a_link_at_a_destination_in_a_sprite_stays_one(
    thopters: Thopters, sprite: Sprite, words: list[str]
) -> None:
    for home in (thopters.home, sprite.home):
        (home / "f").write_text("new")
        (home / "dotfiles").mkdir()
        (home / "dotfiles" / "real").write_text("old")
        (home / "link").symlink_to("dotfiles/real")
    sprite.machine.own(sprite.home)
    done = thopters("cp", *words, stdin=b"new")
    assert (done.code, done.err) == (0, ""), done
    assert os.readlink(sprite.home / "link") == "dotfiles/real"
    assert (sprite.home / "dotfiles" / "real").read_text() == "new"
    assert not leftovers(sprite.home, sprite.home / "dotfiles")


@pytest.mark.parametrize("words", [["f", "dev:pipe"], ["-", "dev:pipe"], ["dev:f", "pipe"]])
def test_no_file_takes_the_place_of_a_device_or_pipe(
    thopters: Thopters, sprite: Sprite, words: list[str]
) -> None:
    """As root that could be /dev/null itself."""
    for home in (thopters.home, sprite.home):
        (home / "f").write_text("new")
        os.mkfifo(home / "pipe")
    sprite.machine.own(sprite.home)
    done = thopters("cp", *words, stdin=b"new")
    assert (done.code, done.out) == (1, ""), done
    assert re.search("cannot replace (./)?pipe by a file", done.err)
    for home in (thopters.home, sprite.home):
        assert (home / "pipe").is_fifo()
        assert not leftovers(home)


def test_over_post_too(thopters: Thopters, emulator: Emulator, sprite: Sprite) -> None:
    emulator.fault(Fault("WS *", "status", status=403, body=b"<html>", times=None))
    furnish(thopters.home / "project")
    assert thopters("cp", "project", "dev:").code == 0
    assert thopters("cp", "dev:project", "back").code == 0
    same(thopters.home / "project", thopters.home / "back")


NO_WEBSOCKETS: dict[str, Any] = {"status": 403, "body": b"<html>", "content_type": "text/html"}


@pytest.mark.parametrize("when", ["early", "late"])
def test_n5_more_than_a_post_takes_goes_in_pieces(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, when: str
) -> None:
    """One piece is cut on its way, and sent again."""
    emulator.personality.post_limit_when = when
    emulator.fault(Fault("WS *", "status", times=None, **NO_WEBSOCKETS))
    emulator.fault(Fault("POST */exec", "cut_request", size=3 << 20, after=1))
    (thopters.home / "file").write_bytes(os.urandom(20 << 20) + b"end")
    done = thopters("cp", "file", "dev:there")
    assert (done.code, done.err) == (0, ""), done
    assert (sprite.home / "there").read_bytes() == (thopters.home / "file").read_bytes()
    posts = emulator.journal.requests("POST")
    sizes = [int(request.headers["Content-Length"]) for request in posts]
    assert len(sizes) == 5 and max(sizes) < (8 << 20) + 10_000
    assert not list(sprite.home.glob(".thopters-*"))


def test_n5_what_was_sent_ahead_goes_when_the_copy_fails(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    emulator.fault(Fault("WS *", "status", times=None, **NO_WEBSOCKETS))
    emulator.fault(Fault("POST */exec", "status", status=500, after=1))
    (thopters.home / "file").write_bytes(bytes(20 << 20))
    done = thopters("cp", "file", "dev:there")
    assert (done.code, done.out) == (1, "")
    assert "cannot send it to dev: " in done.err
    assert sorted(os.listdir(sprite.home)) == [".bashrc", ".profile"]


@pytest.mark.parametrize("over", [0, 1])
def test_n5_exec_says_what_a_post_takes_before_it_runs(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, over: int
) -> None:
    """The limit is of the body, so the script counts as well."""
    emulator.fault(Fault("WS *", "status", times=None, **NO_WEBSOCKETS))
    words = ("exec", "dev", "-i", "--", "sh", "-c", "echo ran; wc -c")
    assert thopters(*words, stdin=b"x").out == "ran\n1\n"
    [post] = emulator.journal.requests("POST")
    room = (10 << 20) - int(post.headers["Content-Length"]) + 1
    done = thopters(*words, stdin=bytes(room + over))
    if not over:
        assert (done.code, done.out) == (0, f"ran\n{room}\n")
        return
    assert (done.code, done.out) == (255, "")
    assert "without them a command takes at most 10 MiB of input; it was not run" in done.err
    assert "hint: copy the input first: thopters cp FILE dev:FILE" in done.err
    assert len(emulator.journal.requests("POST")) == 1


def test_special_files_are_left_out_and_said(thopters: Thopters, sprite: Sprite) -> None:
    for home in (thopters.home, sprite.home):
        (home / "d").mkdir()
        (home / "d" / "file").write_text("x")
        os.mkfifo(home / "d" / "pipe")
        make_socket(home / "d" / "a socket")
    (thopters.home / "d" / "version").symlink_to("/proc/version")  # a link is one, and no file
    sprite.machine.own(sprite.home)
    done = thopters("cp", "d", "dev:e")
    assert done.code == 1
    assert sorted(re.findall("left out: (.*?):", done.err)) == ["d/a socket", "d/pipe"]
    assert sorted(os.listdir(sprite.home / "e")) == ["file", "version"]
    done = thopters("cp", "dev:d", "e")
    assert done.code == 1
    assert sorted(re.findall("left out: (.*?):", done.err)) == ["d/a socket", "d/pipe"]
    assert done.err.count(": it is not a file, directory or link\n") == 2
    assert sorted(os.listdir(thopters.home / "e")) == ["file"]


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(path))


@pytest.mark.skipif(not os.path.exists("/proc/version"), reason="there is no /proc here")
def test_a_file_that_tells_no_size_is_not_copied_as_an_empty_one(
    thopters: Thopters, sprite: Sprite
) -> None:
    done = thopters("cp", "/proc/version", "dev:")
    assert (done.code, "cannot copy /proc/version: it tells no size" in done.err) == (1, True)
    assert not (sprite.home / "version").exists()
    done = thopters("cp", "dev:/proc/version", ".")
    assert (done.code, done.out) == (1, "")
    assert "cannot copy /proc/version: it tells no size; copy it to -" in done.err
    assert not leftovers(thopters.home) and not (thopters.home / "version").exists()
    assert thopters("cp", "dev:/proc/version", "-").out == Path("/proc/version").read_text()
    (thopters.home / "empty").write_bytes(b"")
    assert thopters("cp", "empty", "dev:").code == 0
    assert thopters("cp", "dev:empty", "back").code == 0


def test_a_local_file_that_grows_meanwhile_is_copied_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_text("one\n")
    copy, member = packed_while(path, monkeypatch, lambda: os.truncate(path, 8))
    assert (copy.changed, copy.left_out) == ([str(path)], {})
    assert member == b"one\n"


def packed_while(
    path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]
) -> tuple[program.Copy, bytes]:
    """Pack a file that changes before it is read, and return what comes of it."""
    begin = program.Content.__init__

    def make(*words: Any) -> None:
        begin(*words)
        change()

    monkeypatch.setattr(program.Content, "__init__", make)
    copy, data = pack(path)
    with tarfile.open(fileobj=io.BytesIO(data)) as made:
        read = made.extractfile(made.getmembers()[0])
        return copy, read.read() if read else b""


# what a hostile sprite could send


HOSTILE: dict[str, list[tarfile.TarInfo]] = {
    "absolute": [member("/tmp/thopters-escaped", size=4)],
    "upwards": [member("../escaped", size=4)],
    "through a link": [member("d", tarfile.SYMTYPE, linkname=".."), member("d/escaped", size=4)],
    "through an absolute link": [
        member("d", tarfile.SYMTYPE, linkname="/tmp"),
        member("d/thopters-escaped", size=4),
    ],
    "hard link": [member("d", tarfile.LNKTYPE, linkname="../secret")],
    "device": [member("d", tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "pipe": [member("d", tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_gets_out_of_the_destination(tmp_path: Path, case: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (inside := tmp_path / "inside").mkdir()
    copy = unpack(inside, archive(*HOSTILE[case]))
    if case == "absolute":  # what is left of the name lies inside
        assert (inside / "t" / "tmp" / "thopters-escaped").read_bytes() == b"evil"
    else:
        assert copy.left_out or copy.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "secret"]
    assert not Path("/tmp/thopters-escaped").exists()
    assert (tmp_path / "secret").stat().st_nlink == 1
    for path in inside.rglob("*"):
        assert not path.is_symlink()


FOLDER = member("x", tarfile.DIRTYPE, mode=0o755)
NOT_ASKED_FOR = "the sprite sent what was not asked for"
EVIL: dict[str, tuple[str, list[tarfile.TarInfo]]] = {
    "a file that was not asked for": (
        NOT_ASKED_FOR,
        [member("x", size=4), member(".bashrc", size=4)],
    ),
    "a folder that was not": (NOT_ASKED_FOR, [FOLDER, member(".ssh/authorized_keys", size=4)]),
    "upwards": (NOT_ASKED_FOR, [FOLDER, member("x/../../secret", size=4)]),
    "a link, and a file through it": (
        "the sprite sent x/l twice",
        [FOLDER, member("x/l", tarfile.SYMTYPE, linkname=".."), member("x/l/.bashrc", size=4)],
    ),
    "a link through a link": (
        "through a link: x/l/planted",
        [
            FOLDER,
            member("x/l", tarfile.SYMTYPE, linkname="../../../.."),
            member("x/l/planted", tarfile.SYMTYPE, linkname="/etc/passwd"),
        ],
    ),
    "a link in a folder through a link": (
        "through a link: x/l/new/planted",
        [
            FOLDER,
            member("x/l", tarfile.SYMTYPE, linkname="../../../.."),
            member("x/l/new/planted", tarfile.SYMTYPE, linkname="/etc/passwd"),
        ],
    ),
    "a hard link to what is outside": (
        NOT_ASKED_FOR,
        [FOLDER, member("x/h", tarfile.LNKTYPE, linkname="x/../../secret")],
    ),
    "a time that is none": ("cannot copy: ", [FOLDER, member("x/a", size=4, mtime=10**19)]),
    "a name with a NUL": (
        "cannot copy: ",
        [FOLDER, member("x/a", size=4, pax_headers={"path": "x/a\0b"}), member("x/b", size=4)],
    ),
}
DEEP = "d" * 247


def too_deep() -> list[tarfile.TarInfo]:
    """Links whose real path is longer than the system can follow (CVE-2025-4517)."""
    members, path, steps = [FOLDER], "x", "abcdefghijklmnop"
    for step in steps:
        members.append(member(f"{path}/{DEEP}", tarfile.DIRTYPE, mode=0o755))
        members.append(member(f"{path}/{step}", tarfile.SYMTYPE, linkname=DEEP))
        path += f"/{DEEP}"
    long = "x/" + "/".join(steps) + "/" + "l" * 254
    members.append(member(long, tarfile.SYMTYPE, linkname="../" * len(steps)))
    out = long[2:] + "/../../../../victim"
    members.append(member("x/escape", tarfile.SYMTYPE, linkname=out))
    members.append(member("x/h", tarfile.LNKTYPE, linkname="x/escape/secret"))
    members.append(member("x/h", size=4))
    return members


EVIL["a link that is too long to be looked at"] = ("through a link: x/a/b/", too_deep())


@pytest.mark.parametrize("case", EVIL)
@pytest.mark.parametrize("filters", [True, False], ids=["this Python", "no filters"])
def test_a_hostile_sprite_reaches_nothing_else(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch, case: str, filters: bool
) -> None:
    if not filters:
        use_old_tarfile(thopters)
    evil(sprite, monkeypatch, *deepcopy(EVIL[case][1]))
    (thopters.home / "p" / "q").mkdir(parents=True)
    for folder in (thopters.home, thopters.home / "p", victim := thopters.home / "victim"):
        folder.mkdir(exist_ok=True)
        (folder / "secret").write_text("secret")
    before = tree(thopters.home)
    done = thopters("cp", "dev:x", "p/q/")
    assert (done.code, done.out) == (1, ""), done
    assert EVIL[case][0] in done.err
    assert "Traceback" not in done.err
    after = tree(thopters.home)
    assert {name: after.get(name) for name in before} == before, done
    assert not [name for name in after if not name.startswith("p/q/x") and name not in before]
    for path in (thopters.home / "p" / "q").rglob("*"):
        assert f"{os.path.realpath(path)}/".startswith(f"{thopters.home}/p/q/"), path
    assert (victim / "secret").stat().st_nlink == 1


def tree(folder: Path) -> dict[str, str]:
    """Return what is in a folder: the content of files, by name."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else ""
        for path in folder.rglob("*")
    }


OLD_TARFILE = """\
import sys, tarfile
if hasattr(tarfile, "data_filter"):
    new = tarfile.TarFile.extractall
    tarfile.TarFile.extractall = lambda self, path=".", members=None, *, numeric_owner=False: new(
        self, path, members, numeric_owner=numeric_owner, filter="fully_trusted")
    del tarfile.data_filter, tarfile.fully_trusted_filter
sys.path.insert(0, sys.argv.pop(1))
import thopters
thopters.leave(thopters.main())
"""


def use_old_tarfile(thopters: Thopters) -> None:
    """Have tarfile be as it was before it had filters, in Python 3.11.0 to 3.11.3."""
    thopters.argv = [sys.executable, "-c", OLD_TARFILE, str(MODULE.parent)]


def test_a_round_trip_where_tarfile_has_no_filter(thopters: Thopters, sprite: Sprite) -> None:
    use_old_tarfile(thopters)
    furnish(source := thopters.home / "project")
    assert thopters("cp", "project", "dev:").code == 0
    done = thopters("cp", "dev:project", "back")
    assert (done.code, done.err) == (0, ""), done
    same(source, thopters.home / "back")
    assert described(source) == described(thopters.home / "back")


def test_links_arrive_where_the_way_to_the_destination_has_one(
    thopters: Thopters, sprite: Sprite
) -> None:
    (thopters.home / "real" / "sub").mkdir(parents=True)
    (thopters.home / "via").symlink_to("real")
    (sprite.home / "d").mkdir()
    (sprite.home / "d" / "f").write_text("f")
    (sprite.home / "d" / "l").symlink_to("f")
    sprite.machine.own(sprite.home)
    done = thopters("cp", "dev:d", "via/sub/")
    assert (done.code, done.err) == (0, ""), done
    assert os.readlink(thopters.home / "real" / "sub" / "d" / "l") == "f"


def test_no_folder_is_merged_through_a_link(thopters: Thopters, sprite: Sprite) -> None:
    (thopters.home / "elsewhere").mkdir()
    (thopters.home / "d").mkdir()
    (thopters.home / "d" / "l").symlink_to("../elsewhere")
    (sprite.home / "d" / "l").mkdir(parents=True)
    (sprite.home / "d" / "l" / "x").write_text("x")
    (sprite.home / "d" / "a").write_text("a")
    sprite.machine.own(sprite.home)
    done = thopters("cp", "dev:d", ".")
    assert (done.code, done.out) == (1, "")
    assert "cannot replace ./d/l by a folder\nhint: nothing was put in place" in done.err
    assert not list((thopters.home / "elsewhere").iterdir())
    assert not (thopters.home / "d" / "a").exists()
    assert not leftovers(thopters.home)


def test_a_stream_that_is_cut_or_rubbish_is_an_error(tmp_path: Path) -> None:
    data = archive(member("f", size=2000), data=b"x" * 2000)
    for size in (1, 300, 511, 600, 1500, 2511):
        folder = tmp_path / str(size)
        folder.mkdir()
        assert unpack(folder, data[:size]).error is not None, size
    assert unpack(tmp_path, b"rubbish" * 1000).error is not None


# what is not whole


@pytest.mark.parametrize("size", [0, 3000, 500_000])
def test_an_upload_that_is_cut_leaves_the_old(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, size: int
) -> None:
    (thopters.home / "f").write_bytes(os.urandom(2_000_000))
    (sprite.home / "f").write_text("old")
    sprite.machine.own(sprite.home)
    emulator.fault(Fault("WS */exec", "cut_request", size=size))
    done = thopters("cp", "f", "dev:f")
    assert done.code == 1
    assert (sprite.home / "f").read_text() == "old"


@pytest.mark.parametrize("size", [200, 3000, 20_000])
def test_a_download_that_is_cut_leaves_the_old(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, size: int
) -> None:
    (sprite.home / "f").write_bytes(os.urandom(2_000_000))
    (thopters.home / "f").write_text("old")
    sprite.machine.own(sprite.home)
    emulator.fault(Fault("WS */exec", "cut_response", size=size, times=None))
    done = thopters("cp", "dev:f", "f")
    assert done.code == 1
    assert (thopters.home / "f").read_text() == "old"
    assert not leftovers(thopters.home)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_old(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, number: signal.Signals
) -> None:
    (thopters.home / "f").write_text("old")
    emulator.fault(Fault("WS */exec", "hang"))
    process = thopters.start("cp", "dev:.profile", "f")
    emulator.journal.wait(1)
    while not leftovers(thopters.home):
        assert process.poll() is None
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == -number, err
    assert b"Traceback" not in err
    assert (thopters.home / "f").read_text() == "old"
    assert not leftovers(thopters.home)


@pytest.mark.parametrize("words", [["many", "dev:"], ["-", "dev:f"], ["dev:many", "."]])
def test_what_is_interrupted_in_its_middle_leaves_nothing(
    thopters: Thopters, sprite: Sprite, words: list[str]
) -> None:
    source, target = sprite.home, thopters.home
    if words[1].startswith("dev:"):
        source, target = target, source
    (source / "many").mkdir()
    for number in range(400):
        (source / "many" / str(number)).write_bytes(os.urandom(200_000))
    sprite.machine.own(sprite.home)
    process = thopters.start("cp", *words, stdin=subprocess.PIPE)
    if words[0] == "-":
        assert process.stdin
        process.stdin.write(b"x" * 100_000)
        process.stdin.flush()
    while not leftovers(target):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    sessions = list(sprite.sessions.values())
    assert all(session.ended.wait(30) for session in sessions)
    assert not leftovers(target)
    assert not (target / "f").exists() and not (target / "many").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_all_is_put_in_place_leaves_no_half(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """It comes to the whole group, as ours do, just before the programs that put something."""
    for name in ("mv", "cp"):
        real = shutil.which(name, path="/usr/bin:/bin")
        kill = f"kill -{number.name[3:]} -- -$(cut -d' ' -f5 /proc/$$/stat)"
        put_program(sprite, monkeypatch, name, f'{kill}; exec {real} "$@"')
    for home, text in ((thopters.home, "new"), (sprite.home, "old")):
        for folder in ("d", "d/sub"):
            (home / folder).mkdir()
            for file in "abc":
                (home / folder / file).write_text(text)
    (thopters.home / "d" / "fresh" / "deep").mkdir(parents=True)
    sprite.machine.own(sprite.home)
    done = thopters("cp", "d", "dev:")
    assert (done.code, done.err) == (0, ""), done
    texts = [path.read_text() for path in sorted(sprite.home.glob("d/**/*")) if path.is_file()]
    assert texts == ["new"] * 6 and (sprite.home / "d" / "fresh" / "deep").is_dir()
    assert not leftovers(sprite.home)


@needs_namespace
def test_what_lies_on_another_disk_is_not_lost(thopters: Thopters, sprite: Sprite) -> None:
    """Nothing gets there by a rename, and to take the old away first could be the end of both."""
    for folder in (thopters.home / "d" / "m", sprite.home / "d" / "m"):
        folder.mkdir(parents=True)
    (thopters.home / "d" / "m" / "f").write_text("new")
    (thopters.home / "d" / "g").write_text("new")
    sprite.machine.own(sprite.home)
    assert thopters("exec", "dev", "--", "true").code == 0
    options = ["--user", "--preserve-credentials"] if namespace_kind() == "user" else []
    holder = str(sprite.machine._start_holder())
    inside = ["nsenter", "--target", holder, "--mount", "--root", *options, "--"]
    mount = ["mount", "-t", "tmpfs", "-o", "mode=777", "tmpfs", "/home/sprite/d/m"]
    subprocess.run([*inside, *mount], check=True)
    assert thopters("exec", "dev", "--", "sh", "-c", "echo precious > d/m/f").code == 0
    done = thopters("cp", "d", "dev:")
    assert (done.code, done.out) == (1, "")
    assert "is on another disk; copy to that part by itself\nhint: nothing was put" in done.err
    assert thopters("exec", "dev", "--", "cat", "d/m/f").out == "precious\n"
    assert not (sprite.home / "d" / "g").exists() and not leftovers(sprite.home)
    assert thopters("cp", "d/m/f", "dev:d/m").code == 0
    assert thopters("exec", "dev", "--", "cat", "d/m/f").out == "new"


@pytest.mark.parametrize("depth", [100, pytest.param(1020, marks=pytest.mark.slow)])
def test_a_deep_tree_goes_both_ways_and_is_cleared_away(
    thopters: Thopters, sprite: Sprite, depth: int
) -> None:
    """The second is deeper than Python calls functions within each other."""
    deep = "/".join(["d"] * depth)
    subprocess.run(["mkdir", "-p", str(thopters.home / "top" / deep)], check=True)
    (thopters.home / "top" / deep / "f").write_text("x")
    assert thopters("cp", "top", "dev:").code == 0
    assert (sprite.home / "top" / deep / "f").read_text() == "x"
    (thopters.home / "clash").write_text("x")
    done = thopters("cp", "dev:top", "clash")
    assert (done.code, "cannot replace clash by a folder" in done.err) == (1, True), done
    assert not leftovers(thopters.home)
    for place in (thopters.home, sprite.home):  # pytest's own way can't
        subprocess.run(["rm", "-rf", *map(str, place.glob("*"))], check=True)


@pytest.mark.parametrize("name", [r"a\nb", r"d\101", r"\\", "*", "[a]", "a b ", "-x", "\n"])
def test_odd_names_are_taken_as_they_are(thopters: Thopters, sprite: Sprite, name: str) -> None:
    (sprite.home / name).write_text("file")
    (sprite.home / (name + "d")).mkdir()
    (sprite.home / (name + "d") / name).write_text("inside")
    sprite.machine.own(sprite.home)
    assert thopters("cp", f"dev:./{name}", f"dev:{name}d", ".").code == 0
    assert (thopters.home / name).read_text() == "file"
    assert (thopters.home / (name + "d") / name).read_text() == "inside"
    assert thopters("cp", f"./{name}", f"./{name}d", "dev:.").code == 0


def test_a_destination_that_looks_like_an_option(thopters: Thopters, sprite: Sprite) -> None:
    (thopters.home / "ro" / "sub").mkdir(parents=True)
    (thopters.home / "ro" / "sub" / "f").write_text("x")
    for path in (thopters.home / "ro" / "sub", thopters.home / "ro"):
        path.chmod(0o555)
    (sprite.home / "-foo").mkdir()
    sprite.machine.own(sprite.home)
    assert thopters("cp", "ro", "dev:-foo").code == 0
    assert (sprite.home / "-foo" / "ro" / "sub" / "f").read_text() == "x"
    assert (sprite.home / "-foo" / "ro" / "sub" / "f").stat().st_nlink == 1
    assert not leftovers(sprite.home / "-foo")


def limit(size: int) -> Callable[[], None]:
    def limit() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def test_a_full_disk_here_leaves_the_old(thopters: Thopters, sprite: Sprite) -> None:
    (sprite.home / "f").write_bytes(b"x" * 3_000_000)
    (thopters.home / "f").write_text("old")
    done = thopters("cp", "dev:f", "f", preexec_fn=limit(1_000_000))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("thopters: error: cannot copy f: File too large\n")
    assert (thopters.home / "f").read_text() == "old"
    assert not leftovers(thopters.home)


# what a killed copy leaves in a sprite


def tidier_of(sprite: Sprite) -> bool:
    """Return whether what clears up is in its session, out of reach of a KILL to the group."""
    for pid in sprite.machine.processes():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"thopters-tidy" in words and b"setsid" not in words[0]:
                return pid == os.getsid(pid)
    return False


@pytest.mark.parametrize("words", [["cp", "-", "dev:got"], ["cp", "big", "dev:new"]])
def test_an_upload_whose_shell_is_killed_leaves_nothing(
    thopters: Thopters, sprite: Sprite, words: list[str]
) -> None:
    """So the platform ends what has lost its client: no trap of its own runs."""
    (sprite.home / "got").write_bytes(b"old")
    (thopters.home / "big").write_bytes(os.urandom(50_000_000))

    def left() -> list[Path]:
        return list(sprite.home.glob(".thopters-cp.*"))

    process = thopters.start(*words, stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(b"x" * 10_000)
    process.stdin.flush()
    until(left, "it is unpacked beside its place")
    until(lambda: tidier_of(sprite), "somebody waits for its end")
    for session in list(sprite.sessions.values()):
        os.killpg(session.process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    until(lambda: not left(), "what was left is cleared away")
    assert (sprite.home / "got").read_bytes() == b"old"


def test_an_upload_takes_its_time_whatever_a_shell_may_wait(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image may have TMOUT set, by which bash ends what it reads."""
    real = exec.environment

    def environment(*args: Any) -> dict[str, str]:
        return {**real(*args), "TMOUT": "1"}

    monkeypatch.setattr(exec, "environment", environment)
    process = thopters.start("cp", "-", "dev:got", stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(b"first ")
    process.stdin.flush()
    until(lambda: tidier_of(sprite), "somebody waits for its end")
    threading.Event().wait(1.5)  # for longer than the shell would
    process.stdin.write(b"last")
    assert process.communicate(timeout=60) == (b"", b"")
    assert (process.returncode, (sprite.home / "got").read_bytes()) == (0, b"first last")


def test_a_reader_that_has_stopped_holds_up_no_interrupt(
    thopters: Thopters, emulator: Emulator
) -> None:
    """A pager, say: what is left of the output is not waited for, and the sprite's side ends."""
    sprite = emulator.add_sprite("dev", status="running")
    (sprite.home / "big").write_bytes(bytes(64 << 20))
    process = thopters.start("cp", "dev:big", "-")
    assert process.stdout
    pipe = process.stdout.fileno()
    room = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)

    def waiting() -> int:
        count = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
        return int.from_bytes(count, sys.byteorder)

    until(lambda: waiting() == room, "the pipe is full")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == -signal.SIGINT
    asked = [request.path for request in emulator.journal]
    assert len([path for path in asked if path.endswith("/exec")]) == 2  # the copy, and its end
