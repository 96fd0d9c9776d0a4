"""What Tab offers: in real shells on a terminal, and as the program answers them.

A Tab must not hurt: it shows no error, wakes nothing, waits for nobody, and what comes from
elsewhere neither runs nor draws.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator, Fault
from support.configs import write
from support.logins import Login
from support.program import ROOT, Thopters
from support.runs import Done, run_here, shorten
from support.shells import ARGV, Shell, local_files
from support.waiting import until

import thopters as program

each_shell = pytest.mark.parametrize("kind", ARGV)


def tab(thopters: Thopters, *words: str) -> dict[str, str]:
    """Return what is offered for the last word, with its descriptions."""
    done = run_here(["--complete", "zsh", *words], thopters.env)
    assert (done.code, done.err) == (0, ""), done
    rows = [line.partition("\t") for line in done.out.splitlines()]
    assert len({word for word, _, _ in rows}) == len(rows)
    return {word: text for word, _, text in rows}


def in_bash(thopters: Thopters, line: str, breaks: str = " \t\n\"'@><=;|&(:") -> list[str]:
    done = run_here(["--complete", "bash", line, breaks], thopters.env)
    assert (done.code, done.err) == (0, ""), done
    return done.out.splitlines()


def cache(thopters: Thopters) -> Path:
    """Return the one file in which is kept what was seen."""
    (path,) = (thopters.home / ".cache" / "thopters").glob("seen-*.json")
    return path


# in real shells


@each_shell
def test_a_shell_completes_words_as_it_would_quote_them(
    thopters: Thopters, dev: Emulator, kind: str
) -> None:
    dev.add_sprite("issue-42")
    dev.sprite("dev").add_checkpoint("one")
    sessions = b'[{"id": 1847, "created": "2026-11-30T00:00:00Z", "tty": true}]'
    dev.fault(Fault("GET */exec", "status", status=200, body=sessions))
    local_files(thopters.home)
    with Shell(thopters, kind) as shell:
        for line in ("thopters checkpoints dev", "thopters sessions dev", "thopters use dev"):
            shell.run(line)
        dev.journal.clear()
        for keys, words in {
            "thopters she\tde\t": "shell dev",
            "thopters restore dev \t": "restore dev v1",
            "thopters restore . \t": "restore . v1",
            "thopters kill dev 18\t --sig\tTE\t": "kill dev 1847.tpag00 --signal TERM",
            "thopters attach --deb\tdev \t": "attach --debug dev 1847.tpag00",
            "thopters kill dev 7 --signal=TE\t": "kill dev 7 --signal=TERM",
            "thopters -v url is\t": "-v url issue-42",
            "thopters destroy issue-42 \t": "destroy issue-42 dev",
            "thopters pause é☃ is\t": "pause é☃ issue-42",
            "thopters url --pu\tis\t": "url --public issue-42",
            'thopters url "is\t': "url issue-42",
            "thopters cp dev:no\t": "cp dev:no",
            "thopters exec dev -- no\t": "exec dev -- no",
            "thopters help comp\t": "help completion",
            "thopters completion z\t": "completion zsh",
            "thopters frobnicate \t": "frobnicate",
        }.items():
            assert shell.words(keys) == ["thopters", *words.split(" ")]
        notes = "notes of today.txt"
        assert shell.words("thopters cp no\td\tx") == ["thopters", "cp", notes, "dev:x"]
        assert shell.words("thopters cp -a ./no\t.\t:") == [
            "thopters",
            "cp",
            "-a",
            f"./{notes}",
            ".:",
        ]
        assert shell.words("thopters cp pi\tx dev:") == ["thopters", "cp", "pictures/x", "dev:"]
        home = [str(thopters.home / notes), "dev:"]
        assert shell.words("thopters cp ~/no\tde\t") == ["thopters", "cp", *home]
        assert shell.words("thopters list 2> pi\tx") == ["thopters", "list"]
        assert (thopters.home / "pictures" / "x").exists()
    asked = [(request.method, request.path) for request in dev.journal]
    assert set(asked) <= {("GET", "/v1/sprites")}  # nothing that wakes
    assert dev.sprite("issue-42").status == "cold"


# what a sprite, or who can write in one, may have put into a list
HOSTILE = (
    "$(touch ran)", "`touch ran`", ";touch ran;", "'; touch ran; '", "&& touch ran", "-rf",
    "--yes", "\x1b]0;owned\x07", "\x1b[2J", "\u202eabc", "\t:files", ":files", "%F{red}", "a b",
    "*", "~root", "=ls", "\n(touch ran)", "{a,b}", "\\x1b[31m", "!!", "<(touch ran)", "1;touch ran",
)  # fmt: skip


def make_hostile(emulator: Emulator) -> None:
    """Have every list hold what a shell, or a terminal, could take for a command."""
    sprites: list[dict[str, str]] = [{"name": "dev", "status": "running"}]
    sprites += [{"name": text, "status": text} for text in HOSTILE]
    made = "2026-01-02T03:04:05Z"
    checkpoints = [{"id": text, "create_time": made, "comment": text} for text in HOSTILE]
    checkpoints += [
        {"id": f"v{number}", "create_time": made, "comment": text}
        for number, text in enumerate(HOSTILE)
    ]
    sessions = [{"id": text, "command": text, "tty": True} for text in HOSTILE]
    sessions += [{"id": f"s{number}", "command": text} for number, text in enumerate(HOSTILE)]
    for path, body in (
        ("", {"sprites": sprites, "has_more": False}),
        ("/dev/checkpoints", checkpoints),
        ("/dev/exec", sessions),
    ):
        data = json.dumps(body).encode()
        emulator.fault(Fault(f"GET /v1/sprites{path}", "status", status=200, body=data, times=None))


@each_shell
def test_what_comes_from_elsewhere_neither_runs_nor_draws(
    thopters: Thopters, dev: Emulator, kind: str
) -> None:
    make_hostile(dev)
    for words in (["checkpoints", "dev"], ["sessions", "dev"], ["list"]):
        assert thopters(*words).code == 0
    numbers = range(len(HOSTILE))
    assert set(tab(thopters, "restore", "dev", "")) == {f"v{number}" for number in numbers}
    assert set(tab(thopters, "kill", "dev", "")) == {f"s{number}.0" for number in numbers}
    assert set(tab(thopters, "shell", "")) == {"dev"}
    for line in ("restore dev ", "kill dev ", "shell "):
        for text in tab(thopters, *line.split(), "").values():
            assert text.isprintable()
    with Shell(thopters, kind) as shell:
        shows_list = "\t" * {"bash": 3, "zsh": 2, "fish": 1}[kind]  # they begin alike
        for command, letter in (("restore", "v"), ("kill", "s")):
            words = shell.words(f"thopters {command} dev {shows_list}22")
            assert words == ["thopters", command, "dev", f"{letter}22"]
            assert f"{letter}21".encode() in shell.output
        assert shell.words("thopters shell \t") == ["thopters", "shell", "dev"]
        for bad in (b"owned\x07", b"\x1b[2J", "\u202e".encode()):
            assert bad not in shell.output
    assert not (thopters.home / "ran").exists()


@each_shell
def test_a_thousand_names_a_dead_network_and_settings_that_are_wrong(
    thopters: Thopters, emulator: Emulator, kind: str
) -> None:
    for number in range(1000):
        emulator.add_sprite(f"s-{number:04}")
    assert run_here(["list"], thopters.env).code == 0
    emulator.journal.clear()
    with socket.create_server(("127.0.0.1", 0)) as silent, Shell(thopters, kind) as shell:
        assert shell.words("thopters shell s-09\t9\t7\t") == ["thopters", "shell", "s-0997"]
        assert not emulator.journal.requests()
        begin, started = len(shell.output), time.monotonic()
        # it takes connections, and says nothing
        shell.run(f"export SPRITES_API_URL=http://127.0.0.1:{silent.getsockname()[1]}")
        assert shell.words("thopters shell s\t") == ["thopters", "shell", "s"]
        assert time.monotonic() - started < 15  # of which 0.3 are waited, and 30 would be
        shell.run("export SPRITE_TOKEN=short THOPTERS_CONFIG=relative HTTPS_PROXY=x://")
        for line in ("thopters shell de", "thopters restore . v", "thopters cp a dev:", "thopters"):
            assert shell.words(f"{line}\t") == line.split()
        assert b"rror" not in shell.output[begin:] and b"Trace" not in shell.output[begin:]


def test_a_keyring_that_waits_is_not_waited_for(thopters: Thopters, login: Login) -> None:
    login.store(login.layout({"acme": {}}))
    pid = thopters.home / "pid"
    login.program(f"echo $$ > {pid}.new && mv {pid}.new {pid}\nexec sleep 60\n")
    env = {"PATH": f"{login.programs}:/usr/bin:/bin"}
    started = time.monotonic()
    done = thopters("--complete", "zsh", "shell", "", env=env)
    assert (done.code, done.out, done.err) == (0, "", "")
    assert time.monotonic() - started < 10
    until(lambda: not Path(f"/proc/{pid.read_text().strip()}").exists(), limit_s=10)


def test_where_names_take_longer_than_the_limit_there_are_none(
    thopters: Thopters, dev: Emulator
) -> None:
    shorten(thopters, TAB_LIMIT_S=30)
    assert thopters("--complete", "zsh", "shell", "").out == "dev\trunning\n"
    cache(thopters).unlink()
    shorten(thopters, TAB_LIMIT_S=0.0)
    assert thopters("--complete", "zsh", "shell", "").out == ""


# what is offered


def test_each_kind_of_word_is_offered_where_it_may_stand(
    thopters: Thopters, dev: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "TAB_LIMIT_S", 30.0)
    monkeypatch.chdir(thopters.home)
    dev.add_sprite("other")
    names = {name for command in program.COMMANDS for name in (command.name, *command.aliases)}
    names = {name.split()[0] for name in names}
    assert set(tab(thopters, "")) == names
    assert tab(thopters, "")["rm"] == tab(thopters, "")["destroy"] != ""
    assert {"--version", "--help", "-v"} <= set(tab(thopters, "-"))
    assert set(tab(thopters, "--debug", "help", "")) == names | set(program.TOPICS)
    # every option that the help names, and each once
    for command in program.COMMANDS:
        assert set(tab(thopters, *command.name.split(), "-")) == set(command.options())
    assert "--hold" not in tab(thopters, "exec", "dev", "--no-hold", "-")
    assert "--tty" not in tab(thopters, "exec", "-T", "-")
    assert {"--env", "--dir"} <= set(tab(thopters, "exec", "--env", "A=1", "-"))
    assert "--dir" not in tab(thopters, "exec", "--dir", "x", "-")
    # names, each once, and . where the directory has a sprite
    assert tab(thopters, "shell", "") == {"dev": "running", "other": "hibernating"}
    assert set(tab(thopters, "pause", "dev", "--force", "")) == {"other"}
    assert tab(thopters, "shell", "dev", "") == {} == tab(thopters, "create", "")
    assert run_here(["use", "dev"], thopters.env).code == 0
    assert tab(thopters, "shell", "")["."] == "dev, the sprite of this directory"
    assert set(tab(thopters, "destroy", "")) == {"dev", "other"} == set(tab(thopters, "use", ""))
    assert set(tab(thopters, "cp", "-a", "")) == {":files", ".:", "dev:", "other:"}
    for word in ("./", "a/b", "~", "/"):
        assert set(tab(thopters, "cp", word)) == {":files"}
    for words in (
        ["cp", "dev:"], ["cp", ".:x"], ["exec", "dev", "--", ""], ["exec", "dev", "--dir", ""],
        ["kill", "dev", "7", ""], ["checkpoint", "--comment", ""], ["proxy", "dev", ""],
        ["restore", "dev", ""], ["attach", "none", ""], ["nonsense", ""], ["create", "a", ""],
    ):  # fmt: skip
        assert tab(thopters, *words) == {}, words
    assert set(tab(thopters, "exec", "dev", "")) == {"--"}
    assert set(tab(thopters, "kill", "dev", "7", "--signal", "")) == set(program.SIGNALS)
    assert "--signal=TERM" in tab(thopters, "kill", "--signal=")
    assert set(tab(thopters, "completion", "")) == {"bash", "zsh", "fish"}


def test_words_are_taken_from_a_line_of_bash(
    thopters: Thopters, dev: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "TAB_LIMIT_S", 30.0)
    for line, found in {
        "thopters she": ["shell"],
        "~/bin/thopters   she": ["shell"],
        "thopters shell d": ["dev"],
        "thopters shell 'd": ["dev"],
        'thopters "shell" d': ["dev"],
        "thopters sh\\ell d": ["dev"],
        "thopters url '' ": [],
        "thopters kill dev 7 --signal=TE": ["TERM"],  # readline keeps what is before the =
        "thopters cp d": [":files", "dev:"],
        "thopters cp dev": [":files", "dev:"],
        "thopters cp dev:": [],
        "thopters list >": [":files"],
        "thopters list > ": [":files"],
        "thopters list 2>> fi": [":files"],
        "thopters exec dev < fi": [":files"],
        "thopters shell > file d": ["dev"],
        "thopters shell 2>file d": ["dev"],
        "thopters shell 2> file d": ["dev"],
        "thopters shell d'": ["dev"],
        "thopters shell \\": ["dev"],
        "thopters 'unclosed ": [],
    }.items():
        assert in_bash(thopters, line) == found, line
    assert in_bash(thopters, "thopters kill dev 7 --signal=TE", " ") == ["--signal=TERM"]


DECLARED = """\
import sys
sys.path.insert(0, sys.argv.pop(1))
import thopters
from thopters import Argument, Command
for name in ("box set", "box list"):
    @Command(name, f"do {name}", Argument("key", offers=("ONE", "TWO")), examples=())
    def run(app, args):
        return 0
thopters.leave(thopters.main())
"""


def test_a_command_of_two_words_is_completed_by_what_it_declares() -> None:
    def offered(*words: str) -> list[str]:
        argv = [sys.executable, "-c", DECLARED, str(ROOT), "--complete", "zsh", *words]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()

    assert "box" in offered("b")
    assert offered("box", "") == ["set\tdo box set", "list\tdo box list"]
    assert offered("box", "set", "") == ["ONE", "TWO"]
    assert offered("help", "box", "") == offered("box", "")


# where it comes from


def test_names_come_from_what_was_listed_within_a_minute(
    thopters: Thopters, dev: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "TAB_LIMIT_S", 30.0)
    assert run_here(["list", "--prefix", "x"], thopters.env).code == 0
    assert not (thopters.home / ".cache").exists()  # a part of the names is none of use
    assert run_here(["list"], thopters.env).code == 0
    path = cache(thopters)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert dev.token.encode() not in path.read_bytes()
    dev.journal.clear()
    assert set(tab(thopters, "shell", "")) == {"dev"}
    assert not dev.journal.requests()
    # a minute later, and where the clock was put back, they are asked for
    for seconds in (-61, 100):
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "time": time.time() + seconds}))
        dev.add_sprite(f"new{len(dev.sprites)}")
        assert set(tab(thopters, "shell", "")) == set(dev.sprites)
    # what was made or destroyed is known at once
    assert run_here(["create", "made", "--no-init"], thopters.env).code == 0
    assert "made" in tab(thopters, "shell", "")
    assert run_here(["rm", "made", "--yes"], thopters.env).code == 0
    assert "made" not in tab(thopters, "shell", "")


def test_each_token_org_and_api_has_its_own(thopters: Thopters, dev: Emulator) -> None:
    assert run_here(["list"], thopters.env).code == 0
    path = cache(thopters)
    own = set(path.parent.iterdir())
    dev.stop()
    assert set(tab(thopters, "shell", "")) == {"dev"}
    stored = {name: value for name, value in thopters.env.items() if name != "SPRITE_TOKEN"}
    login = {"urls": {dev.url: {"orgs": {"acme": {"api_token": dev.token}}}}}
    write(thopters.home / ".sprites" / "sprites.json", login)
    for env in (
        {**thopters.env, "SPRITE_TOKEN": "acme/1/another-token"},
        {**thopters.env, "SPRITES_API_URL": "http://127.0.0.1:9"},
        stored,  # the same token, of which the org is known
    ):
        assert run_here(["--complete", "zsh", "shell", ""], env).out == ""
    assert set(path.parent.iterdir()) == own


def test_checkpoints_and_sessions_are_those_that_were_seen(
    thopters: Thopters, dev: Emulator
) -> None:
    sprite = dev.sprite("dev")
    first = thopters("checkpoint", "dev", "--comment", "the first").out.strip()
    assert tab(thopters, "restore", "dev", "") == {first: "the first"}
    sprite.add_checkpoint("by somebody else")
    assert tab(thopters, "restore", "dev", "") == {first: "the first"}
    assert thopters("restore", "dev").code == 0
    assert list(tab(thopters, "restore", "dev", "").values()) == ["by somebody else", "the first"]
    assert tab(thopters, "restore", "other", "") == {}
    session = thopters("exec", "dev", "--detach", "--", "sleep", "60").out.strip()
    assert tab(thopters, "attach", "dev", "") == {session: "sleep 60"}
    words = ("exec", "dev", "-d", "--name", "nap", "--", "sleep", "61")
    assert thopters(*words).code == 0
    assert thopters("sessions", "dev").code == 0
    for command in ("attach", "kill", "logs", "wait"):
        seen = tab(thopters, command, "dev", "")
        assert seen == {session: "sleep 60", "nap": "sleep 61"}, command
    # a sprite that is gone takes along what was seen in it
    assert thopters("list").code == 0
    dev.account.remove("dev")
    assert thopters("list").code == 0
    assert tab(thopters, "restore", "dev", "") == {} == tab(thopters, "kill", "dev", "")


def test_a_session_or_a_secret_in_a_word_is_not_kept_as_it_is(
    thopters: Thopters, dev: Emulator
) -> None:
    sprite = dev.sprite("dev")
    sprite.add_checkpoint(f"with {dev.token} in it, and {'x' * 500}")
    assert thopters("checkpoints", "dev").code == 0
    assert dev.token not in cache(thopters).read_text()
    (text,) = tab(thopters, "restore", "dev", "").values()
    assert text.startswith("with ****") and len(text) == 60


DAMAGED: dict[str, Any] = {
    "nothing": b"",
    "no JSON": b"\xff\x00{",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "numbers": b'{"time": 1e400, "sprites": [[1, 2]], "inside": {"dev": 7}}',
    "other shapes": b'{"time": "x", "sprites": {"a": 1}, "inside": {"dev": {"checkpoint": "v1"}}}',
    "pieces": b'{"time": 0, "sprites": [["a"], ["b", "c", "d"]], "inside": [1]}',
    "large": b" " * (5 << 20),
}


@pytest.mark.parametrize(
    "kind", [*DAMAGED, "a link", "a pipe", "a folder", "for all", "an open one"]
)
def test_a_cache_that_is_not_as_it_should_be_does_no_harm(
    thopters: Thopters, dev: Emulator, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(program, "TAB_LIMIT_S", 30.0)
    dev.sprite("dev").add_checkpoint("one")
    assert run_here(["list"], thopters.env).code == 0
    path = cache(thopters)
    planted = json.dumps({"time": time.time(), "sprites": [["planted", ""]]})
    if kind in DAMAGED:
        path.write_bytes(DAMAGED[kind])
    elif kind == "for all":
        path.write_text(planted)
        path.chmod(0o666)
    elif kind == "an open one":
        path.write_text(planted)
        path.parent.chmod(0o777)
    else:
        path.unlink()
        other = thopters.home / "other"
        other.write_text(planted)
        if kind == "a link":
            path.symlink_to(other)
        elif kind == "a pipe":
            os.mkfifo(path)
        else:
            path.mkdir()
    assert set(tab(thopters, "shell", "")) == {"dev"}
    assert tab(thopters, "restore", "dev", "") == {}
    for words in (["list"], ["checkpoints", "dev"]):
        done = run_here(words, thopters.env)
        assert (done.code, "thopters: " in done.err) == (0, False), done
    known = {"v1"} if kind not in ("a folder", "an open one") else set()
    assert set(tab(thopters, "restore", "dev", "")) == known
    assert kind != "a link" or (thopters.home / "other").read_text() == planted


def ended(done: Done) -> tuple[int, str]:
    return done.code, done.err


def test_where_nothing_can_be_kept_commands_do_without(
    thopters: Thopters, dev: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(program, "TAB_LIMIT_S", 30.0)
    (tmp_path / "file").write_text("")
    usual = ended(run_here(["list"], thopters.env))
    for place in (str(tmp_path / "file"), "/nowhere/cache", "relative", "/proc/cache", "/dev/null"):
        env = {**thopters.env, "XDG_CACHE_HOME": place}
        assert ended(run_here(["list"], env)) == usual
        assert run_here(["--complete", "zsh", "shell", ""], env).out == "dev\trunning\n"
    env = {name: value for name, value in thopters.env.items() if name != "HOME"}
    assert ended(run_here(["list"], env)) == usual
    assert run_here(["--complete", "zsh", "shell", ""], env).out == "dev\trunning\n"


def test_the_scripts_are_printed_and_told_where_to_go(thopters: Thopters, start: Any) -> None:
    for kind in ARGV:
        done = thopters("completion", kind)
        assert (done.code, done.err) == (0, "") and "--complete " + kind in done.out
    session = start("completion", "bash", columns=120)
    assert session.end() == 0
    assert b'hint: put this line into ~/.bashrc: eval "$(thopters completion bash)"' in (
        session.output.replace(b"\x1b[36m", b"").replace(b"\x1b[0m", b"")
    )
    for words in (["completion"], ["completion", "tcsh"]):
        assert thopters(*words).code == 2
