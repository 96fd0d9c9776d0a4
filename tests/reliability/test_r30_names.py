"""R30: no name bends a request. It is refused unsent, or is exactly one segment of the right path.

The emulator's journal is the judge: what came is decoded again and compared with what was typed.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote

import pytest
from emulation import Emulator, Fault, write_launcher
from emulation.journal import Request
from support.program import Thopters
from support.runs import environ_for, run_here
from support.words import TWISTED

ID = "7.t4z2ab"  # of a session
# NAME is where the hostile name goes
COMMANDS = {
    "create": ["create", "NAME", "--no-init"],
    "init": ["init", "NAME"],
    "env push": ["env", "push", "NAME"],
    "env check": ["env", "check", "NAME"],
    "pause": ["pause", "NAME", "--no-wait"],
    "resume": ["resume", "NAME"],
    "exec": ["exec", "NAME", "--", "true"],
    "shell": ["shell", "NAME"],
    "proxy": ["proxy", "NAME", "18080"],
    "checkpoint": ["checkpoint", "NAME"],
    "checkpoints": ["checkpoints", "NAME"],
    "restore": ["restore", "NAME", "v1", "--yes"],
    "restore without an id": ["restore", "NAME"],
    "restore of an id": ["restore", "dev", "NAME", "--yes"],
    "url": ["url", "NAME"],
    "use": ["use", "NAME"],
    "url --public": ["url", "NAME", "--public"],
    "rename": ["rename", "NAME", "dev2"],
    "rename to": ["rename", "dev", "NAME"],
    "shell --native": ["shell", "NAME", "--native"],
    "proxy -W": ["proxy", "NAME", "-W", "localhost:80"],
    "ssh --config": ["ssh", "--config", "NAME"],
    "ssh --setup": ["ssh", "--setup", "--yes", "NAME"],
    "cp to": ["cp", __file__, "NAME:x"],
    "cp from": ["cp", "NAME:x", "-"],
    "sessions": ["sessions", "NAME"],
    "sessions --all": ["sessions", "NAME", "--all"],
    "logs": ["logs", "NAME"],
    "logs of an id": ["logs", "dev", "NAME"],
    "logs -f": ["logs", "NAME", "-f"],
    "wait": ["wait", "NAME"],
    "wait for an id": ["wait", "dev", "NAME"],
    "wait --no-wake": ["wait", "NAME", "--no-wake"],
    "attach": ["attach", "NAME", ID],
    "attach to an id": ["attach", "dev", "NAME"],
    "kill": ["kill", "NAME", ID],
    "kill of an id": ["kill", "dev", "NAME"],
    "kill --forget": ["kill", "NAME", ID, "--forget"],
    "kill --forget of an id": ["kill", "dev", "NAME", "--forget"],
    "exec --detach": ["exec", "NAME", "-d", "--", "true"],
    "exec --name": ["exec", "dev", "-d", "--name", "NAME", "--", "true"],
    "hold": ["hold", "NAME", "--for", "1h"],
    "hold --release": ["hold", "NAME", "--release"],
    "destroy": ["destroy", "NAME", "--yes"],
    "second of several": ["destroy", "dev", "NAME", "--yes"],
    "list --prefix": ["list", "--prefix=NAME"],
}
SEGMENTS = (
    r"/v1/sprites/([^/]+)"
    r"(?:/proxy|/checkpoint|/exec(?:/([^/]+)(?:/kill)?)?|/checkpoints(?:/([^/]+)/restore)?)?"
)

PATHS = (
    "../orgs", "..%2forgs", "%2e%2e", "%2E%2E/x", "./a", "a/.", "a/..", "..\\a", "a//b", "//evil",
    "/v1/sprites", "a/exec", "a/checkpoints/v1", "dev/", "dev/../x", "....//", "a;b", "a;/../b",
    "a%00b", "a%0d%0aX: y", "a%c0%af", "a%u2215b", "a?b=c", "a?", "?", "a#b", "#", "a&b=c", "a=b",
    "http://evil.example/", "//evil.example/x", "evil.example:443", "user@evil.example", "@", "a@b",
    "a b", " a", "a ", "a\tb", "a\nb", "a\r\nHost: evil", "a\r\n\r\nGET / HTTP/1.1", "a\0b", "\0",
    "a\x1b[2Jb", "\x7f", "a\x80b", "a\x9bb", "a\u2028b", "a\u202eb", "a\u200bb", "\ufeffa",
    "~", "~root", "a~b", "*", "a*", "[a]", "{a,b}", "$HOME", "$(id)", "`id`", "a|b", "a>b", "a<b",
    "a'b", 'a"b', "a\\b", "a!b", "^", "a^b", "(a)", "a,b", "a+b", "a:b", "a=", "a.", ".a", "...",
    "é", "ａ", "а", "日本語", "\u0661", "ß", "\U0001f40d", "e\u0301", "\udcff", "a\udc80\udcfe",
    "-", "--", "-a", "-rf", "--yes", "--json", "--force", "-v", "--debug", "--no-init", "--path",
    "--from-env", "---", "-–", "--public=x", "-i", "\u2212a",
    "", ".", "..", "x" * 64, "x" * 128, "x" * 129, "x" * 5000, "A" * 63, "a-", "-a-", "a" * 63,
    "NUL", "con", "COM1", "a" * 48 + "-b", "0", "a", "a--b", "Current", "active", "v1", "null",
)  # fmt: skip


def hostile_names() -> list[str]:
    """Return 300 names: known ones, and random ones of troublesome characters."""
    rng = random.Random(30)
    names = list(dict.fromkeys([*PATHS, *TWISTED]))
    pieces = "./%\\?#:;@&=+~,*'\" \t\r\n\0\x1b\x7f\x80\u202e\u2215é日\udcff-_aAzZ09"
    while len(names) < 300:
        name = "".join(rng.choices(pieces, k=rng.randrange(1, 12)))
        if name not in names:
            names.append(name)
    return names


NAMES = hostile_names()
assert len(NAMES) == 300


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a folder of PATH with a `sprite` that must never be run."""
    folder = tmp_path / "programs"
    write_launcher(folder, "sprite", ["touch", str(folder / "ran")])
    return folder


@pytest.fixture
def strict(emulator: Emulator) -> Iterator[Emulator]:
    """Return an emulator without sprites on which nothing can be made."""
    emulator.fault(Fault("POST *", "status", status=418, times=None))
    yield emulator
    assert not emulator.journal.executed


def check_request(request: Request, name: str, command: str) -> None:
    """Assert that a request speaks of `name`, or of `dev`, and of nothing else."""
    line = request.head.partition(b"\r\n")[0]
    assert line.count(b" ") == 2 and line.isascii()
    assert request.head.count(b"\r\nHost: ") == 1
    assert b"evil" not in re.sub(rb"^\S+ \S+", b"", request.head)
    if request.raw_path == "/v1/sprites":
        query = parse_qs(request.target.partition("?")[2], errors="surrogateescape")
        prefixes = query.get("prefix", [])
        if command == "list --prefix":
            assert prefixes == ([name] if name else [])
        else:  # a look whether the list has a name, or all of it
            assert not prefixes or prefixes[0] in (*meant_by(name, command), "v1", ID)
        if request.method == "POST":
            assert json.loads(request.body) == {"name": name}
        return
    found = re.fullmatch(SEGMENTS, request.raw_path)
    assert found, request
    assert unquote(found[1]) in meant_by(name, command), request
    assert {unquote(found[2] or "7"), unquote(found[3] or "v1")} <= {"7", "v1", name}, request
    for part in filter(None, found.groups()):
        assert part == quote(unquote(part), safe=""), request


def meant_by(name: str, command: str) -> list[str]:
    """Return what may be the name of the sprite that is asked about."""
    if name.startswith("-"):  # an option, so that the next word is the name
        return ["dev", "v1", ID]
    return ["dev", name.partition(":")[0] if command.startswith("cp ") else name]


def check(emulator: Emulator, environ: dict[str, str], command: str, name: str) -> bool:
    """Run a command with a name; return whether anything was sent."""
    words = [word.replace("NAME", name) for word in COMMANDS[command]]
    emulator.journal.clear()
    done = run_here(words, environ)
    assert "internal error" not in done.err, done
    assert not re.search("[^\n -~\xa1-\xac\xae-\uffff\U00010000-\U000e0000]", done.err), done
    sent = emulator.journal.requests()
    if not sent:
        # of a rename there is nothing to send, and `use` without a name has nothing to show
        codes = {"keeps its name": 1, "this directory has no sprite": 3 if name != "." else 2}
        code = next((code for words, code in codes.items() if words in done.err), 2)
        assert done.code == code, done
        return False
    assert done.code in (0, 1, 3, 255) and (done.code or command == "list --prefix"), done
    for request in sent:
        check_request(request, name, command)
    return True


REFUSED = ("", ".", "..", "../orgs", "a/b", "a\r\nHost: evil", "\udcff")
ALLOWED = ("a", "0")
TAKE_IDS = re.compile("(logs|wait|attach|kill).* id$|exec --name")


@pytest.mark.parametrize(
    ("command", "every"),
    [
        *((command, 6) for command in COMMANDS),
        *(pytest.param(command, 1, marks=pytest.mark.slow) for command in COMMANDS),
    ],
)
def test_r30_every_hostile_name_is_refused_or_is_one_segment(
    strict: Emulator, tmp_path: Path, programs: Path, command: str, every: int
) -> None:
    environ = environ_for(strict, str(tmp_path), PATH=f"{programs}:/usr/bin:/bin")
    # argparse of 3.11 takes the value `--` away from any option
    first = list(COMMANDS).index(command) % every
    names = [name for name in NAMES if (command, name) != ("list --prefix", "--")]
    names = list(dict.fromkeys([*REFUSED, *ALLOWED, *names[first::every]]))
    sent = [name for name in names if check(strict, environ, command, name)]
    assert not (programs / "ran").exists()
    if command == "list --prefix":
        assert len(sent) >= len([name for name in names if name.isascii()])
    elif command.startswith("rename"):
        assert not sent
    else:  # so that both ways are taken
        takes_ids = TAKE_IDS.search(command)  # a bare number is the platform's, used again
        assert set(sent) >= set(ALLOWED) - ({"0"} if takes_ids else set())
        assert not takes_ids or not any(name.isdigit() for name in sent)
        assert not set(REFUSED) & set(sent)


def test_r30_a_process_does_the_same_with_bytes(
    thopters: Thopters, strict: Emulator, programs: Path
) -> None:
    """Each command with one name; NUL can't be typed."""
    thopters.env["PATH"] = f"{programs}{os.pathsep}{thopters.env['PATH']}"
    names = [name for name in NAMES if "\0" not in name]
    for number, (command, words) in enumerate(COMMANDS.items()):
        name = names[(number * 13 + 1) % len(names)]
        strict.journal.clear()
        done = thopters(*(os.fsencode(word.replace("NAME", name)) for word in words))
        assert "Traceback" not in done.err and "internal error" not in done.err, (name, done)
        assert done.code in (0, 1, 2, 3, 255), (name, done)
        assert (done.code == 2) <= (not len(strict.journal))
        for request in strict.journal:
            check_request(request, name, command)
    assert not (programs / "ran").exists()
