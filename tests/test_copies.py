"""`cp` as people use it and as others may misuse it: links, modes, what can't be read, other tools.

S and C with a number are faults that were found in it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import ntpath
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from emulation import Emulator
from emulation.state import Sprite
from support.copies import (
    a_copy,
    archive,
    described,
    evil,
    leftovers,
    member,
    pack,
    put_program,
    put_tar,
    unpack,
)
from support.program import MODULE, Thopters
from support.waiting import until

import thopters as program

if TYPE_CHECKING:
    from support.terminals import Start

REAL_TAR = shutil.which("tar", path="/usr/bin:/bin")
INJECTED = """\
import errno, os, sys
sys.path.insert(0, sys.argv.pop(1))
exec(sys.argv.pop(1))
import thopters
thopters.leave(thopters.main())
"""


def inject(thopters: Thopters, lines: str) -> None:
    """Have calls of the system behave otherwise in the program."""
    thopters.argv = [sys.executable, "-c", INJECTED, str(MODULE.parent), lines]


def fails(calls: str, error: str) -> str:
    """Return lines by which calls of os fail."""
    return f"""
def fail(*words, **more):
    raise OSError(errno.{error}, os.strerror(errno.{error}))
for name in {calls.split()!r}:
    setattr(os, name, fail)
"""


# links at the destination, and those that a sprite sends


@pytest.mark.parametrize(
    ("target", "leads"),
    [
        ("log.txt", ".git/config"),
        ("log.txt", "nowhere"),
        ("sub/../log.txt", ".git/../.git/config"),
        pytest.param("./log.txt", "/etc/hostname", marks=pytest.mark.slow),
    ],
)
def test_s2_nothing_is_written_through_a_link_that_is_there(
    thopters: Thopters, sprite: Sprite, target: str, leads: str
) -> None:
    """Such as one that an earlier copy has brought."""
    (thopters.home / ".git").mkdir()
    (thopters.home / "sub").mkdir()
    (thopters.home / ".git" / "config").write_text("mine")
    (thopters.home / "log.txt").symlink_to(leads)
    (sprite.home / "log.txt").write_text("theirs")
    done = thopters("cp", "dev:log.txt", target)
    assert (done.code, done.err) == (0, ""), done
    assert not (thopters.home / "log.txt").is_symlink()
    assert (thopters.home / "log.txt").read_text() == "theirs"
    assert (thopters.home / ".git" / "config").read_text() == "mine"
    assert sorted(os.listdir(thopters.home)) == [".git", "log.txt", "sub"]


def test_s2_a_second_copy_of_a_folder_goes_through_no_link_of_the_first(
    thopters: Thopters, sprite: Sprite
) -> None:
    (thopters.home / ".ssh").mkdir()
    (thopters.home / ".ssh" / "config").write_text("mine")
    (sprite.home / "d").mkdir()
    (sprite.home / "d" / "file").symlink_to("../.ssh/config")
    (sprite.home / "d" / "folder").symlink_to("../.ssh")
    assert thopters("cp", "dev:d", ".").code == 0
    for name in ("file", "folder"):
        (sprite.home / "d" / name).unlink()
    (sprite.home / "d" / "file").write_text("theirs")
    (sprite.home / "d" / "new").write_text("new")
    assert thopters("cp", "dev:d", ".").code == 0
    assert (thopters.home / "d" / "file").read_text() == "theirs"
    (sprite.home / "d" / "folder").mkdir()
    (sprite.home / "d" / "folder" / "config").write_text("theirs")
    done = thopters("cp", "dev:d", ".")
    assert "cannot replace ./d/folder by a folder\nhint: nothing was put" in done.err
    done = thopters("cp", "dev:d/folder/config", "d/folder")
    assert done.code == 1
    assert "d/folder is a link to a directory\nhint: to copy into that" in done.err
    assert (thopters.home / ".ssh" / "config").read_text() == "mine"
    assert os.listdir(thopters.home / ".ssh") == ["config"]
    done = thopters("cp", "dev:d/new", "d/folder/")
    assert (done.code, done.err) == (0, "")
    assert sorted(os.listdir(thopters.home / ".ssh")) == ["config", "new"]


@pytest.mark.parametrize("source", ["x", "./x/"])
def test_s2_what_was_asked_for_is_never_a_link_of_the_sprites(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    evil(sprite, monkeypatch, member("x", tarfile.SYMTYPE, linkname=".git/config"))
    done = thopters("cp", f"dev:{source}", "y")
    assert (done.code, done.out) == (1, "")
    assert f"the sprite sent a link in the place of {source}\n" in done.err
    assert not list(thopters.home.iterdir())


def test_c2_links_in_a_folder_are_kept_as_text_wherever_they_lead(
    thopters: Thopters, sprite: Sprite
) -> None:
    texts = {
        "python": "/usr/bin/python3", "up": "../../..", "here": ".", "round": "round",
        "nowhere": "no such\nfile", "deep": "a/" * 1000, "inside": "sub/f",
    }  # fmt: skip
    (sprite.home / "v" / "bin" / "sub").mkdir(parents=True)
    (sprite.home / "v" / "bin" / "sub" / "f").write_text("x")
    for name, text in texts.items():
        (sprite.home / "v" / "bin" / name).symlink_to(text)
    for words in (["dev:v", "."], ["-a", "dev:v", "."], ["dev:v/.", "w"]):
        done = thopters("cp", *words)
        assert (done.code, done.err) == (0, ""), done
    for folder in ("v/bin", "w/bin"):
        names = {path.name: path for path in (thopters.home / folder).iterdir()}
        assert {n: os.readlink(p) for n, p in names.items() if p.is_symlink()} == texts


# links that are named: thopters' options, and what GNU cp calls them
HABITS = {
    "": "-rpH", "-r": "-rpH", "-a": "-a", "-P": "-rpP", "-L": "-rpL", "-aL": "-rpL",
    "-LP": "-rpP", "-PL": "-rpL", "-La": "-a", "-rpL": "-rpL",
}  # fmt: skip
USUAL = ("", "-P", "-aL")
NAMED = ["f", "to file", "d", "to folder", "chain", "slash/", "out"]


def furnish(home: Path) -> None:
    (home / "d" / "sub").mkdir(parents=True)
    (home / "d" / "sub" / "g").write_text("g")
    (home / "f").write_text("f")
    (home / "d" / "l").symlink_to("../f")
    (home / "d" / "dl").symlink_to("sub")
    for name, text in {
        "to file": "f", "to folder": "d", "chain": "to folder", "slash": "d",
        "out": str(home / "d" / "sub" / "g"),
    }.items():  # fmt: skip
        (home / name).symlink_to(text)


@pytest.mark.parametrize("out", [False, True])
@pytest.mark.parametrize(
    "habit", [h if h in USUAL else pytest.param(h, marks=pytest.mark.slow) for h in HABITS]
)
def test_c2_links_are_followed_as_gnu_cp_follows_them(
    thopters: Thopters, sprite: Sprite, out: bool, habit: str
) -> None:
    furnish(here := sprite.home if out else thopters.home)
    there = thopters.home if out else sprite.home
    (there / "got").mkdir()
    sprite.machine.own(sprite.home)
    if out and sprite.machine.home_inside != str(sprite.home):
        (here / "out").unlink()
        (here / "out").symlink_to(f"{sprite.machine.home_inside}/d/sub/g")
    options = [habit] if habit else []
    side = "dev:" if out else ""
    done = thopters("cp", *options, *(side + name for name in NAMED), "got" if out else "dev:got")
    assert (done.code, done.err) == (0, ""), done
    if out and sprite.machine.home_inside != str(sprite.home):
        (here / "out").unlink()
        (here / "out").symlink_to(here / "d" / "sub" / "g")
    (expected := thopters.home.parent / "expected").mkdir()
    for name in NAMED:  # at once it takes two of them for one
        subprocess.run(["cp", HABITS[habit], "--", name, str(expected)], cwd=here, check=True)
    if out and (there / "got" / "out").is_symlink():
        (expected / "out").unlink()
        (expected / "out").symlink_to(f"{sprite.machine.home_inside}/d/sub/g")
    assert described(there / "got") == described(expected)


@pytest.mark.parametrize("out", [False, True])
def test_c2_links_that_lead_nowhere_or_round_in_circles(
    thopters: Thopters, sprite: Sprite, out: bool
) -> None:
    here, there = (sprite.home, thopters.home) if out else (thopters.home, sprite.home)
    (here / "d" / "e").mkdir(parents=True)
    (here / "d" / "e" / "up").symlink_to("..")
    (here / "d" / "self").symlink_to(".")
    (here / "d" / "gone").symlink_to("nowhere")
    (here / "d" / "f").write_text("f")
    (here / "gone").symlink_to("nowhere")
    sprite.machine.own(sprite.home)
    side, target = ("dev:", ".") if out else ("", "dev:")
    done = thopters("cp", f"{side}gone", target)
    assert (done.code, done.out) == (1, "")
    assert "cannot copy gone: it is a link that leads nowhere\nhint: nothing was put" in done.err
    assert not (there / "gone").is_symlink()
    done = thopters("cp", "-L", f"{side}gone", f"{side}d", target)
    assert done.code == 1
    told = dict(re.findall("left out: (.*?): (.*)", done.err))
    back = "it leads back to a folder that it is in"
    assert told.pop("gone") == "it is a link that leads nowhere"
    assert told.pop("d/gone") == "No such file or directory"
    assert told == {"d/self": back, "d/e/up": back}
    assert sorted(os.listdir(there / "d")) == ["e", "f"]


@pytest.mark.parametrize("out", [False, True])
def test_c2_files_behind_links_become_files_of_their_own(
    thopters: Thopters, sprite: Sprite, out: bool
) -> None:
    """And a folder that can't be looked into is named, whoever finds that out."""
    here, there = (sprite.home, thopters.home) if out else (thopters.home, sprite.home)
    (here / "d" / "it's\n closed").mkdir(parents=True)
    (here / "d" / "it's\n closed" / "in").touch()
    (here / "d" / "f").write_text("f")
    (here / "d" / "hard").hardlink_to(here / "d" / "f")
    (here / "d" / "link").symlink_to("f")
    sprite.machine.own(sprite.home)
    options = thopters.as_somebody()
    (here / "d" / "it's\n closed").chmod(0)
    done = thopters("cp", "-L", *(["dev:d", "."] if out else ["d", "dev:"]), **options)
    assert done.code == 1
    assert done.err == "thopters: warning: left out: d/it's\\n closed: Permission denied\n"
    assert sorted(os.listdir(there / "d")) == ["f", "hard", "link"]
    for name in ("f", "hard", "link"):
        assert (there / "d" / name).lstat().st_nlink == 1
        assert (there / "d" / name).read_text() == "f"


# other users of this machine


def swap(home: Path, victim: Path) -> None:
    """Put a link in the place of our temporary folder, as somebody can who may write there."""
    ours = leftovers(home)[0]
    ours.rename(home / "aside")
    ours.symlink_to(victim)


ENDS: dict[str, tuple[str, Callable[[subprocess.Popen[bytes]], object]]] = {
    "all comes": ("", lambda process: None),
    "tar fails": ("exit 3", lambda process: None),
    "we are interrupted": ("exec sleep 60", lambda process: process.send_signal(signal.SIGINT)),
}


@pytest.mark.parametrize("end", ENDS)
def test_s3_a_link_in_the_place_of_our_folder_is_not_followed(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    (thopters.home / "victim" / "sub").mkdir(parents=True)
    (thopters.home / "victim" / "sub" / "f").write_text("precious")
    (thopters.home / "shared").mkdir()
    (sprite.home / "x").mkdir()
    (sprite.home / "x" / "f").write_text("f")
    script, act = ENDS[end]
    go = f"{sprite.machine.home_inside}/go"
    put_tar(
        sprite, monkeypatch, f'while [ ! -e {go} ]; do sleep 0.05; done; {script}\n{REAL_TAR} "$@"'
    )
    process = thopters.start("cp", "dev:x", "shared")
    until(lambda: leftovers(thopters.home / "shared"), "our folder is there")
    until(lambda: list((thopters.home / "shared").glob(".thopters-*/t")), "it is in use")
    swap(thopters.home / "shared", thopters.home / "victim")
    (sprite.home / "go").touch()
    act(process)
    _, err = process.communicate(timeout=60)
    assert b"internal error" not in err
    assert process.returncode == {"all comes": 0, "tar fails": 1}.get(end, -signal.SIGINT), err
    assert (thopters.home / "victim" / "sub" / "f").read_text() == "precious"
    assert os.listdir(thopters.home / "victim") == ["sub"]
    assert not list((thopters.home / "shared" / "aside").iterdir())
    if end == "all comes":
        assert (thopters.home / "shared" / "x" / "f").read_text() == "f"


@pytest.mark.parametrize("kind", ["a link", "a full folder", "somebody else's"])
def test_s3_another_folder_in_the_place_of_ours_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It is put there in the moment after ours was made."""
    if kind == "somebody else's" and os.geteuid():
        pytest.skip("only root can make what is another user's")
    (tmp_path / "place").mkdir()
    (tmp_path / "victim").mkdir()
    if kind != "somebody else's":
        (tmp_path / "victim" / "f").write_text("precious")
    make = os.mkdir

    def mkdir(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        make(name, mode, dir_fd=dir_fd)
        if name.startswith(".thopters-cp."):
            ours = tmp_path / "place" / name
            ours.rename(tmp_path / "aside")
            if kind == "a link":
                ours.symlink_to(tmp_path / "victim")
            else:
                (tmp_path / "victim").rename(ours)
                (tmp_path / "victim").symlink_to(ours)
            if kind == "somebody else's":
                os.chown(ours, 12345, 12345)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with program.Tree(str(tmp_path / "place")) as place:
        workshop = program.Workshop(place)
        with workshop, pytest.raises(program.ThoptersError, match="cannot write to"):
            workshop.open()
    if kind != "somebody else's":
        assert (tmp_path / "victim" / "f").read_text() == "precious"
    else:
        assert not os.path.exists(tmp_path / "victim" / "t")


def test_s3_nothing_is_put_through_a_link_that_takes_a_folders_place(tmp_path: Path) -> None:
    for name in ("from/d/sub", "to/d/sub", "victim"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "from" / "d" / "sub" / "f").write_text("new")
    (tmp_path / "victim" / "f").write_text("precious")
    with program.Tree(str(tmp_path / "from")) as ours, program.Tree(str(tmp_path / "to")) as place:
        placing = program.Placing(ours, place, "to")
        placing.plan("d", "d")
        (tmp_path / "to" / "d" / "sub").rename(tmp_path / "aside")
        (tmp_path / "to" / "d" / "sub").symlink_to(tmp_path / "victim")
        for fresh in (True, False):  # a tree may have a folder open already
            with contextlib.suppress(program.ThoptersError):
                placing.put()
            if fresh:
                (tmp_path / "from" / "d" / "sub" / "f").write_text("new")
    assert (tmp_path / "victim" / "f").read_text() == "precious"


@pytest.mark.parametrize("what", ["file", "folder"])
def test_s3_what_becomes_a_link_while_we_read_is_not_sent(tmp_path: Path, what: str) -> None:
    (tmp_path / "d" / "folder").mkdir(parents=True)
    (tmp_path / "d" / "folder" / "g").write_text("g")
    (tmp_path / "d" / "file").write_text("f")
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "g").write_text("secret")
    leads = tmp_path / "victim" / ("g" if what == "file" else "")
    style = program.CopyStyle()
    copy = a_copy()
    packer = program.Packer(copy, [], style)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|") as made:
        for entry in program.walk_source(str(tmp_path / "d"), "d", style, copy.leave_out):
            if entry.place == what:
                (tmp_path / "d" / what).rename(tmp_path / "aside")
                (tmp_path / "d" / what).symlink_to(leads)
            packer._add(made, entry)
    assert b"secret" not in stream.getvalue()
    assert list(copy.left_out) == [str(tmp_path / "d" / ("file" if what == "file" else "folder/g"))]


@pytest.mark.parametrize("out", [False, True])
def test_s18_what_is_under_way_can_be_read_by_nobody_else(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch, out: bool
) -> None:
    """The folder in which a copy is unpacked; the umask lets everybody do everything."""
    here, there = (sprite.home, thopters.home) if out else (thopters.home, sprite.home)
    (here / "x").mkdir()
    (here / "x" / "f").write_text("f")
    there.chmod(0o777)
    go = f"{sprite.machine.home_inside}/go"
    wait = f"umask 0; while [ ! -e {go} ]; do sleep 0.05; done"
    put_tar(sprite, monkeypatch, f'umask 0\n{REAL_TAR} "$@"; status=$?\n{wait}; exit $status')
    words = ["dev:x", "."] if out else ["x", "dev:"]
    process = thopters.start("cp", *words, preexec_fn=lambda: os.umask(0))
    until(lambda: list(there.glob(".thopters-cp.*/t")), "it is in use")
    assert {stat.S_IMODE(path.stat().st_mode) for path in leftovers(there)} == {0o700}
    (sprite.home / "go").touch()
    assert process.wait(60) == 0


def test_s18_what_comes_from_stdin_can_be_read_by_nobody_else_before_it_is_whole(
    thopters: Thopters, sprite: Sprite
) -> None:
    (sprite.home / "there").write_text("old")
    (sprite.home / "there").chmod(0o666)
    sprite.machine.own(sprite.home)
    process = thopters.start("cp", "-", "dev:there", stdin=subprocess.PIPE)
    assert process.stdin
    until(lambda: leftovers(sprite.home), "it is written beside its place")
    assert {stat.S_IMODE(path.stat().st_mode) for path in leftovers(sprite.home)} == {0o600}
    process.communicate(b"new", timeout=60)
    assert process.returncode == 0
    assert stat.S_IMODE((sprite.home / "there").stat().st_mode) == 0o666


# modes


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0])
@pytest.mark.parametrize("habit", ["", "-p", "-a"])
def test_s11_the_umask_takes_its_part_from_what_comes_down(
    tmp_path: Path, umask: int, habit: str
) -> None:
    """And no set-id or sticky bit comes out of a sprite, of a file or a folder (S18)."""
    modes = {"f": 0o6777, "d": 0o7777, "d/g": 0o644, "d/e": 0o2750}
    kinds = {"d": tarfile.DIRTYPE, "d/e": tarfile.DIRTYPE}
    members = [member(n, kinds.get(n, tarfile.REGTYPE), mode=m) for n, m in modes.items()]
    assert unpack(tmp_path, archive(*members), style=habit, umask=umask).error is None
    hidden = 0 if habit else umask
    for name, mode in modes.items():
        assert stat.S_IMODE((tmp_path / "t" / name).stat().st_mode) == mode & 0o777 & ~hidden, name


def test_s11_the_umask_is_the_users(thopters: Thopters, sprite: Sprite) -> None:
    (sprite.home / "d").mkdir()
    (sprite.home / "d" / "f").write_text("f")
    (sprite.home / "d" / "f").chmod(0o666)
    (sprite.home / "d").chmod(0o2777)
    for options in ([], ["-p"]):
        done = thopters("cp", *options, "dev:d", "new", preexec_fn=lambda: os.umask(0o027))
        assert done.code == 0, done
        hidden = 0 if options else 0o027
        modes = [stat.S_IMODE((thopters.home / "new" / n).stat().st_mode) for n in ("", "f")]
        assert modes == [0o777 & ~hidden, 0o666 & ~hidden]
        shutil.rmtree(thopters.home / "new")


def test_s18_a_folder_of_a_groups_still_gives_the_group_on(tmp_path: Path) -> None:
    """Though that bit of a sprite's own does not come."""
    tmp_path.chmod(0o2770)
    (tmp_path / "in").mkdir()
    if not (tmp_path / "in").stat().st_mode & stat.S_ISGID:
        pytest.skip("folders here do not take after the one that they are in")
    data = archive(member("d", tarfile.DIRTYPE, mode=0o755), member("d/f", mode=0o2755))
    assert unpack(tmp_path / "in", data).error is None
    modes = [stat.S_IMODE((tmp_path / "in" / "t" / n).stat().st_mode) for n in ("d", "d/f")]
    assert modes == [0o2755, 0o755]


@pytest.mark.parametrize("source", ["x/.", "x"])
def test_s17_folders_of_any_mode_are_merged(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """As of a sprite whose user may read everything, by somebody here who may not."""
    top = "." if source == "x/." else "x"
    kinds = {"": tarfile.DIRTYPE, "/locked": tarfile.DIRTYPE, "/locked/in": tarfile.DIRTYPE}
    names = [*kinds, "/locked/in/f", "/locked/g"]
    members = [member(top + n, kinds.get(n, tarfile.REGTYPE), mode=0, size=0) for n in names]
    evil(sprite, monkeypatch, *members)
    target = thopters.home if source == "x/." else thopters.home / "x"
    (target / "locked").mkdir(parents=True)
    options = thopters.as_somebody()
    for mode in (0, 0o700):  # the second time `in` is there
        done = thopters("cp", f"dev:{source}", ".", **options)
        assert (done.code, done.err) == (0, ""), done
        assert stat.S_IMODE((target / "locked").stat().st_mode) == 0o755
        assert stat.S_IMODE((target / "locked" / "in").stat().st_mode) == mode
        (target / "locked" / "in").chmod(0o700)
        assert os.listdir(target / "locked" / "in") == ["f"]
    assert not leftovers(thopters.home)


# nothing is no success


NOTHING = {
    "no byte": "exit 0",
    "an empty archive": "head -c 10240 /dev/zero",
    "other words": "echo 'tar: it is late' >&2",
}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("no byte", ["dev:f", "g"]),
        ("an empty archive", ["dev:f", "g"]),
        ("other words", ["dev:d", "."]),
        ("an empty archive", ["dev:d/.", "d"]),
        pytest.param("no byte", ["dev:", "d"], marks=pytest.mark.slow),
    ],
)
def test_s10_nothing_is_no_success(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch, answer: str,
    words: list[str],
) -> None:  # fmt: skip
    (sprite.home / "d").mkdir()
    (sprite.home / "f").write_text("f")
    (thopters.home / "g").write_text("old")
    put_tar(sprite, monkeypatch, NOTHING[answer])
    done = thopters("cp", *words)
    assert (done.code, done.out) == (1, ""), done
    assert ": the sprite sent nothing\nhint: nothing was put in place" in done.err
    assert os.listdir(thopters.home) == ["g"]
    assert (thopters.home / "g").read_text() == "old"


def test_s10_each_source_has_to_come(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (sprite.home / name).write_text(name)
    put_tar(sprite, monkeypatch, f"{REAL_TAR} -cf - .//a .//.//c")
    done = thopters("cp", "dev:a", "dev:b", "dev:c", ".")
    assert (done.code, done.out) == (1, "")
    assert done.err == "thopters: warning: left out: b: the sprite sent nothing\n"
    assert sorted(os.listdir(thopters.home)) == ["a", "c"]


@pytest.mark.parametrize("count", [70, pytest.param(3000, marks=pytest.mark.slow)])
def test_each_of_many_sources_comes_under_its_own_name(
    thopters: Thopters, sprite: Sprite, count: int
) -> None:
    """A link that is followed has the name of what it leads to."""
    (sprite.home / "real").write_text("real")
    for number in range(count):
        if number % 3:
            (sprite.home / f"f{number}").write_text(str(number))
        else:
            (sprite.home / f"f{number}").symlink_to("real")
    sprite.machine.own(sprite.home)
    done = thopters("cp", *(f"dev:f{number}" for number in range(count)), ".")
    assert (done.code, done.err) == (0, ""), done
    texts = {path.name: path.read_text() for path in thopters.home.iterdir()}
    assert texts == {f"f{n}": str(n) if n % 3 else "real" for n in range(count)}


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (
            "head -c 3000000 /dev/urandom",
            "cannot copy: the sprite sent a broken archive: invalid header\n",
        ),
        (
            f'{REAL_TAR} "$@" | head -c 99999; echo "tar: the reason" >&2; exit 9',
            "cannot copy: tar: the reason\n",
        ),
        ("head -c 2000000 /dev/zero | tr '\\0' a >&2; exit 3", "cannot copy: aaaaa"),
        (
            "yes 'tar: .//f/x: Cannot open: Permission denied' | head -c 2000000 >&2; exit 2",
            "cannot copy: too many files can't be read in the sprite to name them all\n",
        ),
    ],
    ids=["rubbish", "half", "a long word", "many words"],
)
def test_s8_a_sprite_that_sends_nonsense_is_told_of_and_soon(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch, script: str, says: str
) -> None:
    (sprite.home / "f").write_bytes(os.urandom(200_000))
    put_tar(sprite, monkeypatch, script)
    done = thopters("cp", "dev:f", ".")
    assert (done.code, done.out) == (1, "")
    assert says in done.err and "hint: nothing was put in place" in done.err
    assert not list(thopters.home.iterdir())


# names of the home


def test_c1_a_tilde_is_the_home(thopters: Thopters, sprite: Sprite) -> None:
    (thopters.home / "f").write_text("f")
    (thopters.home / "d").mkdir()
    (sprite.home / "sub").mkdir()
    sprite.machine.own(sprite.home)
    for source, target in {
        "f": "~",
        "./f": "~/sub/",
        "../home/f": "~/sub/new",
        "d": "~/made/",
    }.items():
        done = thopters("cp", source, f"dev:{target}")
        assert (done.code, done.err) == (0, ""), (target, done)
    assert thopters("cp", "-", "dev:~/piped", stdin=b"piped").code == 0
    assert sorted(os.listdir(sprite.home)) == [".bashrc", ".profile", "f", "made", "piped", "sub"]
    assert sorted(os.listdir(sprite.home / "sub")) == ["f", "new"]
    assert thopters("cp", "dev:~/piped", "-").out == "piped"
    assert thopters("cp", "dev:~/sub", "dev:~/f", ".").code == 0
    assert thopters("cp", "dev:~/", "home").code == 0
    assert "sub" in os.listdir(thopters.home / "home")
    assert thopters("cp", "f", "dev:./~").code == 0
    assert (sprite.home / "~").read_text() == "f"


@pytest.mark.parametrize("words", [["f", "dev:~root"], ["dev:~root/x", "."], ["dev:~a~", "-"]])
def test_c1_another_users_home_is_refused(
    thopters: Thopters, emulator: Emulator, words: list[str]
) -> None:
    (thopters.home / "f").write_text("f")
    done = thopters("cp", *words)
    assert (done.code, done.out) == (2, "")
    assert re.search(r"cp knows your own home in dev alone, and not ~\S+\nhint: a file", done.err)
    assert len(emulator.journal) == 0


# what can't be read


def hide(folder: Path) -> None:
    """Make a folder of which not all can be read by its owner."""
    (folder / "closed").mkdir(parents=True)
    (folder / "closed" / "in").write_text("in")
    (folder / "fine").write_text("fine")
    for name in ("a b", "a: b", "c\nd", "\\e", "\u00e9"):
        (folder / name).write_text("x")
        (folder / name).chmod(0)
    (folder / "closed").chmod(0)


@pytest.mark.parametrize("out", [False, True])
def test_c3_what_can_not_be_read_is_left_out_and_named(
    thopters: Thopters, sprite: Sprite, out: bool
) -> None:
    here, there = (sprite.home, thopters.home) if out else (thopters.home, sprite.home)
    hide(here / "d")
    (here / "f").write_text("f")
    (here / "no").touch(mode=0)
    sprite.machine.own(sprite.home)
    side, target = ("dev:", ".") if out else ("", "dev:")
    options = thopters.as_somebody()
    done = thopters("cp", f"{side}d", f"{side}gone", f"{side}no", f"{side}f", target, **options)
    assert (done.code, done.out) == (1, ""), done
    told = dict(re.findall("(?m)^thopters: warning: left out: (.*): (.*)$", done.err))
    assert done.err.count("\n") == len(told)
    gone = told.pop("gone")
    assert gone in ("there is no such file", "No such file or directory")
    names = {"d/a b", "d/a: b", "d/c\\nd", "d/\\e", "d/\u00e9", "d/closed", "no"}
    assert told == dict.fromkeys(names, "Permission denied")
    assert os.listdir(there / "d") == ["fine"]
    assert (there / "f").read_text() == "f"
    done = thopters("cp", f"{side}no", f"{target}/new" if out else "dev:new", **options)
    assert (done.code, done.out) == (1, ""), done
    assert "cannot copy no: Permission denied\nhint: nothing was put in place" in done.err
    assert not (there / "new").exists() and not leftovers(there)


def make_pipe_of(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


MEANWHILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "vanishes": (lambda path: path.unlink(), "No such file or directory"),
    "shrinks": (lambda path: os.truncate(path, 5), "it became shorter while it was read"),
    "is empty": (lambda path: os.truncate(path, 0), "it became shorter while it was read"),
    "becomes a pipe": (make_pipe_of, "it is not a file, directory or link"),
}


@pytest.mark.parametrize("case", MEANWHILE)
def test_c3_a_local_file_that_changes_meanwhile_does_not_arrive_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    (tmp_path / "d").mkdir()
    for name in "abc":
        (tmp_path / "d" / name).write_bytes(name.encode() * 100_000)
    (tmp_path / "d" / "bb").hardlink_to(tmp_path / "d" / "b")
    change, why = MEANWHILE[case]
    victim = tmp_path / "d" / "b"
    place = program.Content if case in ("shrinks", "is empty") else program.Entry
    begin: Any = place.__init__

    def make(self: object, *words: Any) -> None:
        begin(self, *words)
        shown = words[3] if place is program.Entry else os.readlink(f"/proc/self/fd/{words[1]}")
        if shown == str(victim):
            change(victim)

    monkeypatch.setattr(place, "__init__", make)
    copy, data = pack(tmp_path / "d")
    assert copy.left_out[str(victim)] == why
    (tmp_path / "got").mkdir()
    done = subprocess.run([str(REAL_TAR), "-xf", "-", "-C", str(tmp_path / "got")], input=data)
    assert done.returncode == 0
    torn = tmp_path / "got" / ".thopters-torn"
    dropped = torn.read_bytes().split(b"\0") if torn.exists() else []
    arrived = {p.name for p in (tmp_path / "got" / "t" / "d").iterdir()}
    arrived -= {os.path.basename(name.decode()) for name in dropped}
    assert {"a", "c"} <= arrived and "b" not in arrived
    for name in arrived - {"bb"}:
        assert (tmp_path / "got" / "t" / "d" / name).read_bytes() == name.encode() * 100_000


def test_c3_a_torn_file_is_not_put(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there stays, and the rest arrives."""
    (thopters.home / "d").mkdir()
    (sprite.home / "d").mkdir()
    for name in ("a b", "\n", "c"):
        (thopters.home / "d" / name).write_text("new")
        (sprite.home / "d" / name).write_text("old")
    sprite.machine.own(sprite.home)
    inject(
        thopters,
        """
read = os.read
os.read = lambda fd, size: b"" if size == 3 else read(fd, size)
""",
    )
    (thopters.home / "d" / "c").write_text("newer")
    done = thopters("cp", "d", "dev:")
    assert done.code == 1
    assert done.err.count("it became shorter while it was read") == 2
    texts = {path.name: path.read_text() for path in (sprite.home / "d").iterdir()}
    assert texts == {"a b": "old", "\n": "old", "c": "newer"}


SAYS = {  # what GNU tar says of a file, its status, and what is said here of d/b
    "shrank": ("File shrank by 5 bytes; padding with zeros", 1, "it became shorter while it was"),
    "read error": ("Read error at byte 0, while reading 5 bytes: Input/output error", 2, "Input/o"),
    "vanished": ("File removed before we read it", 1, "it has vanished"),
}


@pytest.mark.parametrize("case", SAYS)
def test_c3_what_tar_could_not_read_is_left_out(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    words, status, why = SAYS[case]
    (sprite.home / "d").mkdir()
    (sprite.home / "d" / "a").write_text("a")
    (sprite.home / "d" / "b").write_text("b")
    (sprite.home / "d" / "c").hardlink_to(sprite.home / "d" / "b")
    lines = f'{REAL_TAR} "$@"; echo "tar: .//d/b: {words}" >&2; echo "tar: Exiting with failure'
    put_tar(sprite, monkeypatch, f'{lines} status due to previous errors" >&2; exit {status}')
    done = thopters("cp", "dev:d", ".")
    assert (done.code, done.out) == (1, "")
    assert f"left out: d/b: {why}" in done.err
    arrived = sorted(os.listdir(thopters.home / "d"))
    assert arrived == (["a", "b", "c"] if case == "vanished" else ["a"])


def test_c3_a_remote_file_that_shrinks_while_tar_reads_it(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sprite.home / "d").mkdir()
    (sprite.home / "d" / "f").write_bytes(b"x" * 3_000_000)
    (sprite.home / "d" / "g").write_text("g")
    home = sprite.machine.home_inside
    shrink = f"(head -c 100000; truncate -s 2000000 {home}/d/f; cat)"
    lines = f"echo $? > {home}/status; }} | {shrink}; exit $(cat {home}/status)"
    put_tar(sprite, monkeypatch, f'{{ {REAL_TAR} "$@"; {lines}')
    done = thopters("cp", "dev:d", ".")
    assert done.code == 1
    assert "left out: d/f: it became shorter while it was read\n" in done.err
    assert os.listdir(thopters.home / "d") == ["g"]


# habits


@pytest.mark.parametrize("out", [False, True])
def test_c4_a_folder_becomes_a_new_one_whatever_options_people_are_used_to(
    thopters: Thopters, sprite: Sprite, out: bool
) -> None:
    here, there = (sprite.home, thopters.home) if out else (thopters.home, sprite.home)
    (here / "d").mkdir()
    (here / "d" / "f").write_text("f")
    sprite.machine.own(sprite.home)
    options: list[list[str]] = [["-r"], ["-a"], ["-R", "-p"]]
    sources = ("d", "d/", "d/.")
    targets = ("new/", "new/", "made//")
    for flags, source, target in zip(options, sources, targets, strict=True):
        words = [f"dev:{source}", target] if out else [source, f"dev:{target}"]
        done = thopters("cp", *flags, *words)
        assert (done.code, done.err) == (0, ""), done
    assert sorted(os.listdir(there / "new")) == ["d", "f"]
    assert os.listdir(there / "made") == ["f"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["f", "dev:no/such/place"], "cannot write to no/such/: No such file or directory"),
        (["f", "dev:~/no/such/"], "such/ is not a directory"),
        (["-", "dev:no/such/place"], "cannot write to no/such/: No such file or directory"),
        (["f", "dev:closed/new"], "cannot write to closed/: Permission denied"),
        (["-", "dev:closed/new"], "cannot write to closed/: Permission denied"),
        (["f", "dev:here/x"], "cannot write to here/: Not a directory"),
        (["dev:.profile", "new/"], "new/ is not a directory\nhint: nothing was put in place"),
    ],
)
def test_c4_what_can_not_be_is_told_in_the_users_words(
    thopters: Thopters, sprite: Sprite, words: list[str], says: str
) -> None:
    for home in (thopters.home, sprite.home):
        (home / "f").write_text("f")
        (home / "here").write_text("f")
    (sprite.home / "closed").mkdir()
    sprite.machine.own(sprite.home)
    (sprite.home / "closed").chmod(0o555)
    before = sorted(os.listdir(thopters.home)), sorted(os.listdir(sprite.home))
    done = thopters("cp", *words, stdin=b"x")
    assert (done.code, done.out) == (1, ""), done
    assert says in done.err, done
    assert "thopters-cp" not in done.err and "mkdir" not in done.err and "bash" not in done.err
    assert before == (sorted(os.listdir(thopters.home)), sorted(os.listdir(sprite.home)))


WORK = "/home/a b/.thopters-cp." + "0f" * 16


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "tar: t/d/f: Cannot open: File name too long",
            "tar: d/f: Cannot open: File name too long",
        ),
        (
            f"mv: cannot move '{WORK}/t/f' to '/home/a b/f': No",
            "mv: cannot move 'f' to '/home/a b/f': No",
        ),
        (f"cp: cannot stat '{WORK}/t': Gone", "cp: cannot stat '': Gone"),
        (f"mv: cannot stat \u2018{WORK}/t/f\u2019: x", "mv: cannot stat \u2018f\u2019: x"),
        (f"tar: sub/.thopters-cp.{'0f' * 16}: Cannot open: x", "tar: : Cannot open: x"),
        ("tar: the true reason", "tar: the true reason"),
    ],
)
def test_c4_names_of_ours_are_cut_out_of_what_others_say(line: str, shown: str) -> None:
    assert program.without_our_names(line) == shown


@pytest.mark.parametrize("name", ["mv", "cp"])
def test_c4_what_can_not_be_put_is_named(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = shutil.which(name, path="/usr/bin:/bin")
    for home in (thopters.home, sprite.home):
        (home / "d").mkdir()
    (thopters.home / "d" / "f").mkdir() if name == "cp" else (thopters.home / "d" / "f").touch()
    put_program(sprite, monkeypatch, name, f'rm -rf "$PWD"/.thopters-cp.*/t/d/f; exec {real} "$@"')
    done = thopters("cp", "d", "dev:")
    assert done.code == 1
    assert re.search(rf"error: cannot copy: \S*{name}: cannot stat 'd/f'", done.err), done
    assert "thopters-cp" not in done.err


# more than bytes: holes, attributes, disks that lack something


def holes(path: Path) -> int:
    """Return how many bytes of a file are not there."""
    status = path.stat()
    return status.st_size - status.st_blocks * 512


def make_sparse(path: Path, size: int, *data: tuple[int, bytes]) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for start, piece in data:
            file.seek(start)
            file.write(piece)


LAYOUTS: dict[str, tuple[int, list[tuple[int, bytes]]]] = {
    "nothing but a hole": (1 << 30, []),
    "its middle": (1 << 30, [(500 << 20, b"middle")]),
    "its ends": (1 << 28, [(0, b"first"), ((1 << 28) - 4, b"last")]),
    "many": (100 << 20, [(n << 20, b"x" * 5000) for n in range(1, 100, 2)]),
    "an odd end": ((1 << 26) + 1, [(1 << 20, b"x")]),
}


@pytest.fixture
def sparse(tmp_path: Path) -> None:
    make_sparse(tmp_path / "probe", 1 << 20)
    if holes(tmp_path / "probe") < 1 << 19:
        pytest.skip("files have no holes here")


@pytest.mark.usefixtures("sparse")
def test_c5_holes_stay_holes(thopters: Thopters, sprite: Sprite) -> None:
    (thopters.home / "d").mkdir()
    for name, (size, data) in LAYOUTS.items():
        make_sparse(thopters.home / "d" / name, size, *data)
    (thopters.home / "d" / ("long" * 60)).write_bytes(b"plain")
    for name in ("\u00e9", "n" * 150):  # which have a header of their own
        make_sparse(thopters.home / "d" / name, 1 << 20, (1 << 19, b"x"))
    for words in (["d", "dev:"], ["dev:d", "back"]):
        done = thopters("cp", *words)
        assert (done.code, done.err) == (0, ""), done
    for place in (sprite.home / "d", thopters.home / "back"):
        for name, (size, data) in LAYOUTS.items():
            was = thopters.home / "d" / name
            assert (place / name).stat().st_size == size
            assert holes(place / name) >= holes(was) - (1 << 20), (place, name)
            with (place / name).open("rb") as file:
                for start, piece in data:
                    file.seek(start)
                    assert file.read(len(piece)) == piece
    assert described(thopters.home / "d") == described(thopters.home / "back")


@pytest.mark.usefixtures("sparse")
@pytest.mark.parametrize("name", ["nothing but a hole", "many", "an odd end"])
def test_c5_gnu_tar_and_tarfile_read_our_holes(tmp_path: Path, name: str) -> None:
    size, data = LAYOUTS[name]
    make_sparse(tmp_path / "f", size >> 6, *((start >> 6, piece) for start, piece in data))
    size = (tmp_path / "f").stat().st_size
    (tmp_path / "got").mkdir()
    copy, stream = pack(tmp_path / "f")
    assert (copy.left_out, copy.bytes) == ({}, size)
    tar = [str(REAL_TAR), "-xf", "-", "-C", str(tmp_path / "got")]
    subprocess.run(tar, input=stream, check=True)
    assert (tmp_path / "got" / "t" / "f").read_bytes() == (tmp_path / "f").read_bytes()
    assert len(stream) < size // 2 + 20_000
    with tarfile.open(fileobj=io.BytesIO(stream)) as made:
        made.extractall(tmp_path / "again", filter="data")
    assert (tmp_path / "again" / "t" / "f").read_bytes() == (tmp_path / "f").read_bytes()


def test_c5_a_file_of_which_the_system_knows_no_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_sparse(tmp_path / "f", 1 << 20, (1 << 19, b"x"))
    seek = os.lseek

    def refuse(fd: int, position: int, how: int) -> int:
        if how in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return seek(fd, position, how)

    monkeypatch.setattr(os, "lseek", refuse)
    _, stream = pack(tmp_path / "f")
    with tarfile.open(fileobj=io.BytesIO(stream)) as made:
        [read] = [made.extractfile(each) for each in made if each.isreg()]
        assert read and read.read() == (tmp_path / "f").read_bytes()


def of_holes(parts: bytes, **more: str) -> bytes:
    """Return a sparse file of 100,000 bytes, of which `parts` are there, and one behind it."""
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "f"}
    headers |= {"GNU.sparse.realsize": "100000", **more}
    holed = member("GNUSparseFile.0/f", size=1024, pax_headers=headers)
    return archive(holed, member("g", size=4), data=parts.ljust(512, b"\0") + b"x" * 512)


def test_c5_a_sparse_file_whose_size_has_a_header_of_its_own(tmp_path: Path) -> None:
    """As GNU tar writes one that has 8 GiB and more of data; tarfile then loses its way."""
    copy = unpack(tmp_path, of_holes(b"1\n0\n512\n", size="1024"))
    assert (copy.error, copy.left_out) == (None, {})
    assert (tmp_path / "t" / "f").read_bytes() == (b"x" * 512).ljust(100_000, b"\0")
    assert (tmp_path / "t" / "g").stat().st_size == 4


@pytest.mark.parametrize("parts", [b"1\n-5\n512\n", b"1\n0\n-99999\n", b"1\nx\n5\n", b"9" * 512])
def test_c5_holes_that_can_not_be_are_an_error(tmp_path: Path, parts: bytes) -> None:
    assert unpack(tmp_path, of_holes(parts)).error is not None


@pytest.mark.usefixtures("sparse")
def test_c5_a_sparse_file_that_grows_keeps_to_its_first_size(tmp_path: Path) -> None:
    make_sparse(tmp_path / "f", 1 << 20, (0, b"x"))
    with (tmp_path / "f").open("rb") as file:
        before = os.fstat(file.fileno())
        make_sparse(tmp_path / "f", 1 << 22, (0, b"x"), (1 << 21, b"y"))
        segments = program.data_segments(file.fileno(), before)
    assert len(segments) == 1
    assert segments[0][0] == 0 and 0 < segments[0][1] < 1 << 20


ATTRIBUTES = {"user.plain": b"text", "user.odd=%3D": b"\0\xff=\n1", "user.empty": b""}


def attributes(path: Path) -> dict[str, bytes]:
    names = [name for name in os.listxattr(path) if name.startswith("user.")]
    return {name: os.getxattr(path, name) for name in names}


def test_c5_extended_attributes_go_along(thopters: Thopters, sprite: Sprite) -> None:
    (thopters.home / "d" / "sub").mkdir(parents=True)
    (thopters.home / "d" / "f").write_text("f")
    try:
        for name, value in ATTRIBUTES.items():
            os.setxattr(thopters.home / "d" / "f", name, value)
            os.setxattr(thopters.home / "d" / "sub", name, value)
        os.setxattr(sprite.home, "user.probe", b"")
    except OSError:
        pytest.skip("no attributes here")
    shutil.copytree(thopters.home / "d", thopters.home / "d" / "locked")
    (thopters.home / "d" / "locked" / "f").chmod(0o444)
    (thopters.home / "d" / "locked" / "sub").chmod(0o555)
    for words in (["d", "dev:"], ["dev:d", "back"]):
        done = thopters("cp", *words)
        assert (done.code, done.err) == (0, ""), done
    assert (sprite.home / "d" / "locked" / "f").read_text() == "f"
    for place in (sprite.home / "d", thopters.home / "back"):
        for inner in ("f", "sub"):
            assert attributes(place / inner) == ATTRIBUTES


def test_c5_a_disk_there_without_attributes_loses_nothing_else(
    thopters: Thopters, sprite: Sprite, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "tar: .//f: Warning: Cannot flistxattr: Operation not supported"
    (sprite.home / "f").write_text("f")
    put_tar(sprite, monkeypatch, f'echo "{line}" >&2; exec {REAL_TAR} "$@"')
    done = thopters("cp", "dev:f", ".")
    assert (done.code, done.err) == (0, "")
    assert (thopters.home / "f").read_text() == "f"


def test_c5_no_attribute_but_the_users_comes_from_a_sprite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others can give a program rights."""
    put: list[str] = []
    monkeypatch.setattr(os, "setxattr", lambda where, name, value: put.append(name))
    names = ("security.capability", "trusted.x", "system.posix_acl_access", "user.fine", "userx.y")
    headers = {f"SCHILY.xattr.{name}": "x" for name in names}
    assert unpack(tmp_path, archive(member("f", pax_headers=headers))).error is None
    assert put == ["user.fine"]


def test_c6_a_disk_without_links_or_modes_gets_the_rest(thopters: Thopters, sprite: Sprite) -> None:
    """As FAT, some network disks, and Windows without the right to make links."""
    (sprite.home / "d" / "sub").mkdir(parents=True)
    (sprite.home / "d" / "sub" / "f").write_text("f")
    (sprite.home / "d" / "f").write_text("f")
    (sprite.home / "d" / "f").chmod(0o640)
    (sprite.home / "d" / "second").hardlink_to(sprite.home / "d" / "f")
    (sprite.home / "d" / "link").symlink_to("f")
    sprite.machine.own(sprite.home)
    argv = list(thopters.argv)
    cases = {
        "symlink EPERM": (["f", "second", "sub"], 1, "left out: d/link: Operation not permitted"),
        "symlink ENOTSUP": (["f", "second", "sub"], 1, "left out: d/link: Operation not supp"),
        "chmod EPERM": (["f", "link", "second", "sub"], 0, "the disk here does not keep modes"),
        "utime EPERM": (["f", "link", "second", "sub"], 0, ""),
        "link EPERM": (["f", "link", "second", "sub"], 0, ""),
        "link chmod EPERM": (["f", "link", "second", "sub"], 0, "the disk here does not keep"),
    }
    for case, (names, code, says) in cases.items():
        thopters.argv = argv
        calls, _, error = case.rpartition(" ")
        inject(thopters, fails(calls, error))
        done = thopters("cp", "dev:d", case)
        assert (done.code, says in done.err) == (code, True), (case, done)
        assert done.err.count("\n") == (1 if says else 0)
        assert sorted(os.listdir(thopters.home / case)) == names
        assert (thopters.home / case / "second").read_text() == "f"
        assert not leftovers(thopters.home)
    assert stat.S_IMODE((thopters.home / "link EPERM" / "second").stat().st_mode) == 0o640


def test_c6_a_link_whose_time_can_not_be_set_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*words: Any, **more: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(os, "supports_follow_symlinks", {refuse, *os.supports_follow_symlinks})
    copy = unpack(tmp_path, archive(member("l", tarfile.SYMTYPE, linkname="x")))
    assert (copy.error, copy.left_out) == (None, {})
    assert os.readlink(tmp_path / "t" / "l") == "x"


def test_a_part_of_the_destination_on_another_disk_is_a_clash(tmp_path: Path) -> None:
    """Nothing gets there by a rename."""
    for name in ("from/d/m", "to/d/m"):
        (tmp_path / name).mkdir(parents=True)
    with program.Tree(str(tmp_path / "from")) as ours, program.Tree(str(tmp_path / "to")) as place:
        look = place.stat

        def look_elsewhere(name: str) -> os.stat_result:
            fields = list(look(name))
            fields[2] += name == "d/m"
            return os.stat_result(fields)

        place.stat = look_elsewhere  # type: ignore[method-assign]
        with pytest.raises(program.ThoptersError, match="to/d/m is on another disk"):
            program.Placing(ours, place, "to").plan("d", "d")


def test_c6_a_name_that_the_disk_does_not_take_is_left_out(
    thopters: Thopters, sprite: Sprite
) -> None:
    """As FAT has no colon, and some encrypted disks have shorter names."""
    for name in ("fine", "a:b", "c"):
        (sprite.home / name).write_text(name)
    inject(
        thopters,
        """
def refuse(path, *words, open=os.open, **more):
    if path == "a:b":
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return open(path, *words, **more)
os.supports_dir_fd.add(refuse)
os.open = refuse
""",
    )
    done = thopters("cp", "dev:.", "got")
    assert (done.code, done.out) == (1, "")
    assert done.err == "thopters: warning: left out: ./a:b: Invalid argument\n"
    names = sorted(os.listdir(thopters.home / "got"))
    assert names == [".bashrc", ".profile", "c", "fine"]


INSIDE = ["a", "a b", "a.b", ".a", "caf\u00e9", "console", "com10", "a$", "-", "~", "con-", "nul1"]
OUTSIDE = [
    "..\\x", "\\x", "C:x", "C:", "a\\..\\..\\x", "\\\\host\\share", "f:stream", ".. ", "...", "a.",
    "a ", "con", "NUL", "nul.txt",
    "com1", "LPT9.x", "com\xb9", "aux .c", "CONIN$", "a\tb", "a*", "\0",
]  # fmt: skip


def test_s5_no_name_leaves_the_destination_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        fit = {name for name in INSIDE + OUTSIDE if program.fits_system(name)}
    assert fit == set(INSIDE)
    for name in INSIDE:
        path = ntpath.normpath(ntpath.join("C:\\here", name))
        assert ntpath.split(path) == ("C:\\here", name)


# whose programs run, and what other programs make of it


def test_s18_cp_and_helpers_run_without_the_users_variables(
    thopters: Thopters, sprite: Sprite
) -> None:
    """Which could change what tar does, or keep a helper from running at all."""
    (sprite.home / ".thopters").mkdir()
    (sprite.home / ".thopters" / "env").write_text(
        "export TAR_OPTIONS=--exclude=* BASH_ENV=/dev/stdin PATH=/nowhere\nexit 9\n"
    )
    (thopters.home / "f").write_text("f")
    sprite.machine.own(sprite.home)
    assert thopters("exec", "dev", "--", "true").code == 9
    for words in (["f", "dev:"], ["-", "dev:g"], ["dev:f", "got"], ["dev:f", "-"]):
        done = thopters("cp", *words, stdin=b"g")
        assert (done.code, done.err) == (0, ""), done
    assert (thopters.home / "got").read_text() == (sprite.home / "f").read_text() == "f"
    session = sprite.sessions
    assert session
    done = thopters("kill", "dev", "1")
    assert "the command for it ended with 9" not in done.err


def test_c_what_gnu_tar_makes_of_our_stream(tmp_path: Path) -> None:
    """And Python's tarfile, by the filter that lets nothing dangerous pass."""
    (folder := tmp_path / "d" / "sub").mkdir(parents=True)
    long, odd = "n" * 255, os.fsdecode(b"\xff\n\\ \xc3\xa9")
    for name in ("plain", long, odd, "run"):
        (folder / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    (folder / "run").chmod(0o750)
    (folder / "second").hardlink_to(folder / "run")
    (folder / "link").symlink_to(odd)
    (folder / "empty").mkdir(mode=0o700)
    os.utime(folder / "plain", (1e9 + 0.25, 1e9 + 0.25))
    copy, stream = pack(tmp_path / "d")
    assert (copy.left_out, copy.changed, copy.entries) == ({}, [], 9)
    (tmp_path / "tar").mkdir()
    tar = [str(REAL_TAR), "-xpf", "-", "-C", str(tmp_path / "tar")]
    assert subprocess.run(tar, input=stream, check=True).returncode == 0
    with tarfile.open(fileobj=io.BytesIO(stream), errors="surrogateescape") as made:
        made.extractall(tmp_path / "py", filter="data")
    for place in ("tar", "py"):
        assert described(tmp_path / place / "t" / "d") == described(tmp_path / "d")
    assert (tmp_path / "tar/t/d/sub/second").samefile(tmp_path / "tar/t/d/sub/run")
    rsync = shutil.which("rsync")
    if rsync:
        words = [rsync, "-naHXic", "--delete", f"{tmp_path}/d/", f"{tmp_path}/tar/t/d/"]
        assert subprocess.run(words, capture_output=True, check=True).stdout == b""


def test_s8_what_a_sprite_says_about_one_file_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name, attributes or a map of holes, which are kept in memory; what a file holds is not."""
    monkeypatch.setattr(program.Unpacker, "MAX_ABOUT_ONE", 1 << 20)
    fine = archive(member("f", size=3 << 20), member("g", size=3 << 20), data=bytes(3 << 20))
    for name, data, why in (
        ("fine", fine, None),
        ("name", archive(member("f" * (2 << 20))), "the sprite sent too much about one file"),
        ("words", archive(member("f", pax_headers={"comment": "x" * (2 << 20)})), "too much"),
    ):
        (tmp_path / name).mkdir()
        error = unpack(tmp_path / name, data).error
        assert (error is None) if why is None else (why in str(error)), (name, error)
    assert sorted(os.listdir(tmp_path / "fine" / "t")) == ["f", "g"]


@pytest.mark.parametrize("out", [False, True])
def test_c5_progress_tells_per_cent_and_rate(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, monkeypatch: pytest.MonkeyPatch,
    start: Start, out: bool,
) -> None:  # fmt: skip
    here = sprite.home if out else thopters.home
    (here / "d").mkdir()
    for name in "abcd":
        (here / "d" / name).write_bytes(os.urandom(2_000_000))
    go = f"{sprite.machine.home_inside}/go"
    wait = f"while [ ! -e {go} ]; do sleep 0.05; done"
    if out:
        script = f'{REAL_TAR} "$@" | (head -c 4000000; {wait}; cat)'
    else:
        script = f'(head -c 4000000; {wait}; cat) | {REAL_TAR} "$@"'
    put_tar(sprite, monkeypatch, script)
    session = start("cp", *(["dev:d", "got"] if out else ["d", "dev:"]))
    session.expect(" of 8.0 MB, ")
    shown = r"copied \d\.\d of 8\.0 MB, \d{2,3} %, \d+\.\d MB/s \(\d+ s\)"
    until(lambda: re.search(shown, session.screen.text), "it is told how far it is")
    (sprite.home / "go").touch()
    assert session.end() == 0
