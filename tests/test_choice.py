"""Which sprite is meant where no name is typed: that of a directory, and a numbered list."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from emulation import Emulator, Fault
from support.configs import write
from support.program import Thopters
from support.runs import run_here
from support.terminals import Start

ORG = "acme"


@contextlib.contextmanager
def inside(thopters: Thopters, folder: Path | bytes) -> Iterator[None]:
    """Run the program in a folder, with its home where it was."""
    before, thopters.home = thopters.home, folder  # type: ignore[assignment]
    yield
    thopters.home = before


@pytest.fixture
def project(thopters: Thopters) -> Path:
    project = thopters.home / "project"
    (project / "src" / "deep").mkdir(parents=True)
    return project


@pytest.fixture
def two(emulator: Emulator) -> Emulator:
    for name in ("dev", "other"):
        emulator.add_sprite(name, status="running").add_checkpoint(f"of {name}")
    return emulator


def sprite_of(thopters: Thopters, folder: Path | bytes) -> str:
    """Return the sprite of a folder as a command takes it, "" for none."""
    with contextlib.chdir(folder):
        done = run_here(["checkpoints", "."], thopters.env)
    assert done.code in (0, 2), done
    assert done.code == 0 or "hint: choose one: thopters use NAME\n" in done.err
    return done.out.rpartition("of ")[2].strip()


# use


def test_a_directory_has_a_sprite_and_the_nearest_one_counts(
    thopters: Thopters, two: Emulator, project: Path, path: Path
) -> None:
    src, deep, elsewhere = project / "src", project / "src" / "deep", thopters.home / "elsewhere"
    elsewhere.mkdir()
    assert sprite_of(thopters, project) == ""
    with inside(thopters, project):
        done = thopters("use", "dev")
    assert (done.code, done.out, done.err) == (0, f"dev is the sprite of {project} now\n", "")
    with inside(thopters, src):
        assert thopters("use", "other", "--json").code == 0
    found = [sprite_of(thopters, folder) for folder in (project, src, deep, elsewhere)]
    assert found == ["dev", "other", "other", ""]
    with inside(thopters, deep):
        done = thopters("use")
        assert (done.code, done.out) == (0, "other\n")
        assert done.err == f"it is the sprite of {src}\n"
        told = json.loads(thopters("use", "--json").out)
        facts = {"name": "other", "directory": str(src), "file": None}
        assert told == {"schema_version": 1, **facts}
    with inside(thopters, src):
        done = thopters("use", "--unset")
    assert (done.code, done.out) == (0, f"other is no longer the sprite of {src}\n")
    assert done.err == f"dev counts: it is the sprite of {project}\n"
    assert sprite_of(thopters, deep) == "dev"
    with inside(thopters, elsewhere):
        done = thopters("use", "--unset")
        assert (done.code, done.out) == (0, f"no sprite was chosen for {elsewhere}\n")
        assert thopters("use").code == 3
    assert json.loads(path.read_text())["directories"] == {str(project): "dev"}
    assert sorted(os.listdir(project)) == ["src"] and not os.listdir(elsewhere)


def test_what_changes_something_says_which_sprite_it_takes_and_why(
    thopters: Thopters, two: Emulator, project: Path
) -> None:
    said = f"using dev: it is the sprite of {project}\n"
    (project / "file").write_text("text\n")
    with inside(thopters, project):
        thopters("use", "dev")
        done = thopters("exec", ".", "--", "sh", "-c", "cat > copy; echo out; exit 3")
        assert (done.code, done.out, done.err) == (3, "out\n", said)
        done = thopters("cp", "file", ".:copied")
        assert (done.code, done.out, done.err) == (0, "", said)
        done = thopters("cp", ".:copied", "-")
        assert (done.code, done.out, done.err) == (0, "text\n", said)
        done = thopters("resume", "other", ".", ".", "dev")
        assert (done.code, done.err) == (0, said)
        assert [line.split()[0] for line in done.out.splitlines()] == ["other", "dev"]
        for words in (["url", "."], ["sessions", "."], ["restore", "."]):
            done = thopters(*words)
            assert done.code == 0 and "using dev" not in done.err, done
        assert said in thopters("-v", "url", ".").err
    assert two.sprite("dev").home.joinpath("copied").read_text() == "text\n"


def test_what_cannot_be_undone_wants_a_name(
    thopters: Thopters, two: Emulator, project: Path
) -> None:
    with inside(thopters, project):
        thopters("use", "dev")
        two.journal.clear()
        for words in (
            ["destroy", ".", "--yes"], ["rm", "other", ".", "--yes"], ["url", ".", "--public"],
        ):  # fmt: skip
            done = thopters(*words)
            assert (done.code, done.out) == (2, ""), done
            assert "takes no .: type the name of the sprite\nhint: see which" in done.err
        assert not two.journal.requests()
        assert thopters("url", ".", "--private").code == 0
    assert list(two.sprites) == ["dev", "other"]


def test_only_a_sprite_that_there_is_can_be_chosen(
    thopters: Thopters, two: Emulator, project: Path, path: Path
) -> None:
    with inside(thopters, project):
        done = thopters("use", "dve")
        assert done.code == 3 and "did you mean dev?" in done.err
        for words in (["use", "a/b"], ["use", ""], ["use", "dev", "--unset"]):
            assert thopters(*words).code == 2
    assert not path.exists()
    assert thopters("create", ".").code == 2


def test_directories_that_move_and_go(
    thopters: Thopters, two: Emulator, project: Path, path: Path
) -> None:
    gone = thopters.home / "gone"
    gone.mkdir()
    for folder, name in ((project, "dev"), (gone, "other")):
        with inside(thopters, folder):
            assert thopters("use", name).code == 0
    moved = project.rename(thopters.home / "moved")
    assert sprite_of(thopters, moved) == ""
    gone.rmdir()
    before = path.read_bytes()
    gone.mkdir()  # the path is the same again, and so is the sprite
    assert sprite_of(thopters, gone) == "other"
    assert path.read_bytes() == before
    link = thopters.home / "link"
    link.symlink_to(gone)
    assert sprite_of(thopters, link) == "other"
    # a shell can stand in a folder that is no more
    script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    argv, thopters.argv = thopters.argv, ["bash", "-c", script, "sh", str(gone), *thopters.argv]
    for words in (["use"], ["use", "dev"], ["url", "."], ["use", "--unset"]):
        gone.mkdir(exist_ok=True)
        done = thopters(*words)
        assert done.code == 2, done
        assert "cannot tell which directory this is: No such file or directory" in done.err
    thopters.argv = argv
    assert thopters("url", "dev").code == 0


def test_the_home_itself_and_names_of_any_bytes(thopters: Thopters, two: Emulator) -> None:
    odd = os.fsencode(thopters.home) + b"/\xff\x1b[2J \n'"
    os.mkdir(odd)
    with inside(thopters, odd):
        done = thopters("use", "dev")
        assert done.code == 0 and b"\x1b" not in done.out_bytes + done.err_bytes
        done = thopters("resume", ".")
        assert done.code == 0 and b"\x1b" not in done.out_bytes + done.err_bytes
        assert done.err.startswith("using dev: ") and done.err.count("\n") == 1
    assert thopters("use", "other").code == 0
    assert sprite_of(thopters, odd) == "dev"
    assert sprite_of(thopters, thopters.home) == "other"


def test_a_damaged_choice_is_an_error(
    thopters: Thopters, two: Emulator, project: Path, path: Path
) -> None:
    damaged: list[object] = [[], {str(project): 7}, {str(project): "a/../b"}, {str(project): ""}]
    for directories in damaged:
        write(path, {"directories": directories})
        with inside(thopters, project):
            done = thopters("resume", ".")
        assert done.code in (1, 2) and not two.journal.requests(), done


# the official program's file


def put(folder: Path, document: object, *, as_folder: bool = False) -> Path:
    file = folder / ".sprite"
    if as_folder:
        file.mkdir(exist_ok=True)
        file /= "selected"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return file


def named(name: str, organization: str = ORG) -> dict[str, str]:
    return {"organization": organization, "sprite": name}


@pytest.mark.parametrize("as_folder", [False, True], ids=["a file", "a folder"])
def test_a_file_of_the_official_program_counts_once_that_is_agreed_to(
    thopters: Thopters, two: Emulator, project: Path, path: Path, start: Start, as_folder: bool
) -> None:
    src = project / "src"
    file = put(project, named("dev"), as_folder=as_folder)
    before = (file.read_bytes(), file.stat().st_mtime_ns)
    assert sprite_of(thopters, src) == "dev"  # to look changes nothing, so nobody is asked
    with inside(thopters, src):
        assert thopters("use").out == "dev\n"
        done = thopters("exec", ".", "-i", "--", "cat", stdin=b"secret")
        assert (done.code, done.out) == (2, ""), done
        question = f"{file} names the sprite {ORG}/dev"
        assert f"error: {question}, and you have not agreed" in done.err
        assert done.err.endswith(f"hint: agree to it: cd {project} && thopters use dev\n")
        assert not two.journal.requests("WS")
        for answer, code in (("n", 2), ("y", 0)):
            session = start("resume", ".", columns=300)
            session.expect(f"{question}. Use it? [y/N] ")
            session.type(answer + "\n")
            assert session.end() == code, session.output
        done = thopters("resume", ".")  # which does not ask again
        assert (done.code, done.err) == (0, f"using dev: {file} names it\n")
    assert json.loads(path.read_text())["trusted"] == {str(file): f"{ORG}/dev"}
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    # consent is for what was shown, and not for what a file says later
    put(project, named("other"), as_folder=as_folder)
    with inside(thopters, src):
        assert thopters("resume", ".").code == 2
    # what the user has chosen comes first
    with inside(thopters, project):
        assert thopters("use", "dev").code == 0
        assert thopters("resume", ".").err == f"using dev: it is the sprite of {project}\n"
        assert thopters("use", "--unset").err == f"other counts: {file} names it\n"
        assert thopters("use", ".").out == f"other is the sprite of {project} now\n"


def test_no_file_leads_into_another_org(thopters: Thopters, two: Emulator, project: Path) -> None:
    put(project, named("dev", "strangers"))
    with inside(thopters, project):
        for words in (["resume", "."], ["checkpoints", "."], ["cp", ".:x", "."], ["use", "."]):
            done = thopters(*words)
            assert (done.code, done.out) == (2, ""), done
            assert f"names a sprite of the org strangers, and the token is for {ORG}" in done.err
        two.fault(Fault("GET /v1/sprites/dev", "status", status=200, body=b'{"name": "dev"}'))
        done = thopters("checkpoints", ".")
        assert done.code == 2 and "it is not known which one the token is for" in done.err
        put(project, named("none"))
        assert thopters("checkpoints", ".").code == 3
    assert not two.journal.requests("WS") and not two.journal.requests("POST")


def link_to(folder: Path, target: str) -> None:
    real = put(folder, named("dev"))
    os.rename(real, folder / "real")
    (folder / ".sprite").symlink_to(target)


def as_folder(folder: Path, change: Callable[[Path], object]) -> None:
    change(put(folder, named("dev"), as_folder=True))


def replaced_by_link(file: Path) -> None:
    file.rename(file.with_name("real"))
    file.symlink_to("real")


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a link": lambda folder: link_to(folder, "real"),
    "a link to a device": lambda folder: link_to(folder, "/dev/zero"),
    "a dangling link": lambda folder: (folder / ".sprite").symlink_to("nowhere"),
    "a pipe": lambda folder: os.mkfifo(folder / ".sprite"),
    "a large file": lambda folder: put(folder, " " * 70_000 + json.dumps(named("dev"))),
    "an empty file": lambda folder: put(folder, ""),
    "no JSON": lambda folder: put(folder, "dev\x1b[2J"),
    "deep JSON": lambda folder: put(folder, "[" * 60_000),
    "a list": lambda folder: put(folder, [named("dev")]),
    "a name twice": lambda folder: put(folder, '{"sprite": "a", "sprite": "dev"}'),
    "no org": lambda folder: put(folder, {"sprite": "dev"}),
    "an empty org": lambda folder: put(folder, named("dev", "")),
    "an org with escapes": lambda folder: put(folder, named("dev", "acme\x1b]0;x\x07")),
    "a path as a name": lambda folder: put(folder, named("../other")),
    "an option as a name": lambda folder: put(folder, named("--yes")),
    "a dot as a name": lambda folder: put(folder, named(".")),
    "a command as a name": lambda folder: put(folder, named("$(touch ran)")),
    "escapes as a name": lambda folder: put(folder, named("dev\x1b[2J\r\n")),
    "a number as a name": lambda folder: put(folder, {"organization": ORG, "sprite": 7}),
    "no UTF-8": lambda folder: (folder / ".sprite").write_bytes(b'{"sprite": "\xff"}'),
    "others can write it": lambda folder: put(folder, named("dev")).chmod(0o666),
    "a group can write it": lambda folder: put(folder, named("dev")).chmod(0o664),
    "another user's": lambda folder: os.chown(put(folder, named("dev")), 52001, 52001),
    "a folder others write": lambda f: as_folder(f, lambda file: file.parent.chmod(0o777)),
    "a folder of another": lambda f: as_folder(f, lambda file: os.chown(file.parent, 52001, -1)),
    "a file of another in a folder": lambda f: as_folder(f, lambda file: os.chown(file, 52001, -1)),
    "a link in a folder": lambda folder: as_folder(folder, replaced_by_link),
    "where others can write": lambda f: put(f, named("dev")).parent.chmod(0o777),
    "in a folder of another": lambda f: os.chown(put(f, named("dev")).parent, 52001, 52001),
}


@pytest.mark.skipif(sys.platform == "win32", reason="files have no modes and owners there")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_does_not_count_is_ignored_with_a_word(
    thopters: Thopters, two: Emulator, project: Path, path: Path, kind: str
) -> None:
    if "another" in kind and os.geteuid() != 0:
        pytest.skip("only root can give files away")
    HOSTILE[kind](project)
    with contextlib.chdir(project):
        done = run_here(["checkpoints", "."], thopters.env)
    assert (done.code, done.out) == (2, ""), done
    warning, error, hint = done.err.splitlines()
    assert warning.startswith(f"thopters: warning: {project / '.sprite'}"), done
    assert warning.endswith(", so it is ignored")
    assert (error, hint[:5]) == ("thopters: error: this directory has no sprite", "hint:")
    assert not set(done.err) & {"\x1b", "\x07", "\r"} and not two.journal.requests()
    assert not (project / "ran").exists()
    # what the user has chosen above it counts all the same
    write(path, {"directories": {str(project.parent): "other"}})
    assert sprite_of(thopters, project) == "other"


def test_where_the_search_for_files_ends(
    thopters: Thopters, two: Emulator, project: Path, tmp_path: Path
) -> None:
    # at the home, which is the last that is looked at
    put(tmp_path, named("other"))
    assert sprite_of(thopters, project) == ""
    assert sprite_of(thopters, tmp_path) == "other"
    put(thopters.home, named("dev"))
    assert sprite_of(thopters, project) == "dev"
    (thopters.home / ".sprite").unlink()
    (thopters.home / ".sprite" / "keyring").mkdir(parents=True)  # as the official program has it
    with inside(thopters, project):
        done = thopters("url", ".")
    assert done.code == 2 and "ignored" not in done.err
    # outside of the home, before a folder that others can write in
    shared = tmp_path / "shared"
    mine = shared / "mine"
    (mine / "src").mkdir(parents=True)
    assert sprite_of(thopters, mine / "src") == "other"
    shared.chmod(0o1777)
    assert sprite_of(thopters, mine / "src") == ""
    put(shared, named("dev"))
    with inside(thopters, mine / "src"):
        done = thopters("url", ".")
    assert done.code == 2
    put(mine, named("dev"))
    assert sprite_of(thopters, mine / "src") == "dev"
    # what the user has chosen counts from everywhere above
    (mine / ".sprite").unlink()
    with inside(thopters, tmp_path):
        assert thopters("use", "dev").code == 0
    assert sprite_of(thopters, mine / "src") == "dev"
    shutil.rmtree(shared)


# the numbered list


def test_a_missing_name_is_asked_for_on_a_terminal(
    thopters: Thopters, emulator: Emulator, start: Start
) -> None:
    for number, name in enumerate(("old", "dev", "new")):
        emulator.add_sprite(name, status="running", updated_at=1_800_000_000.0 + number)
    emulator.sprite("dev").status = "warm"
    emulator.add_sprite("77", updated_at=1_700_000_000.0)
    session = start("url")
    session.expect("Which sprite? A number or a name: ")
    session.type("2\n")
    assert session.end() == 0
    lines = session.screen.lines
    assert [line.split()[:3] for line in lines[:3]] == [
        ["1", "new", "running"], ["2", "dev", "hibernating"], ["3", "old", "running"],
    ]  # fmt: skip
    assert len({line.index("2027") for line in lines[:3]}) == 1  # the ages stand below each other
    assert lines[-1] == "" and lines[-2] == emulator.sprite("dev").url
    for words, typed, code, says in (
        (["resume"], "3, dev\n", 0, "old was running"),
        (["resume"], "nope\n", 3, "there is no sprite nope"),
        (["destroy"], "1\n", 0, "Type new to destroy it: "),
        (["url", "--json"], "\n", 2, "no sprite was chosen: nothing was done"),
        (["url"], "5\n", 2, "5 is not in the list: nothing was done"),
        (["url"], "77\n", 0, "//77-"),
        (["url"], "1 2\n", 2, "no sprite was chosen: nothing was done"),
        (["checkpoints"], "a/b\n", 2, "'a/b' is not a sprite's name"),
        (["url"], "\x04", 2, "no sprite was chosen: nothing was done"),
    ):
        session = start(*words, columns=120)
        session.expect("umber")
        session.type(typed)
        if words == ["destroy"]:
            session.expect(says)
            session.type("new\n")
        assert session.end() == code, session.output
        assert says in session.screen.text
    assert list(emulator.sprites) == ["old", "dev", "77"]
    session = start("destroy", "--yes", columns=120)  # where a number would be all it takes
    assert session.end() == 2
    assert "--yes wants the names of the sprites" in session.screen.text


def test_what_is_listed_is_harmless_and_has_an_end(
    thopters: Thopters, emulator: Emulator, start: Start
) -> None:
    sprites = [{"name": f"s{number}", "status": "running"} for number in range(300)]
    sprites[0] |= {"status": "\x1b[2Jrun\u202ening\r\n", "updated_at": "2030-01-01T00:00:00Z"}
    body = json.dumps({"sprites": sprites, "has_more": False}).encode()
    emulator.fault(Fault("GET /v1/sprites", "status", status=200, body=body, times=None))
    session = start("url", columns=120)
    session.expect("and 280 more; type the name of one of them\r\nWhich sprite?")
    session.type("s299\n")
    assert session.end() == 3
    words = ["s0", "\\x1b[2Jrun\\u202ening\\r\\n", "2030-01-01T00:00:00Z"]
    assert session.screen.lines[0].split()[1:] == words


def test_elsewhere_a_missing_name_is_wrong_usage(thopters: Thopters, emulator: Emulator) -> None:
    for words in (
        ["init"], ["pause"], ["resume"], ["shell"], ["sessions"], ["attach"], ["kill"],
        ["checkpoint"], ["checkpoints"], ["restore"], ["url", "--json"], ["destroy"],
        ["hold", "--for", "1h"], ["exec", "--", "true"], ["proxy", "-W", "localhost:22"],
    ):  # fmt: skip
        done = run_here(words, thopters.env)
        assert done.code == 2
        said = done.out + done.err
        assert "the following arguments are required: NAME" in said, done
        assert f"see: thopters {words[0]} --help" in said
    assert not emulator.journal.requests()
