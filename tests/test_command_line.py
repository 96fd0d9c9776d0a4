"""The command line and the program itself: help, words it does not know, streams, locales.

The program has no commands of two words yet, so a child Python declares some before it runs it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from emulation import Emulator
from support.program import ROOT, Thopters, both


def test_options_may_stand_between_words(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev", status="running").add_checkpoint("first")
    assert thopters("restore", "dev", "--yes", "v1").code == 0
    assert json.loads(thopters("url", "--json", "dev", "-v").out)["name"] == "dev"


@pytest.mark.parametrize("words", [["ls"], ["ls", "-la", "a b"], ["-i", "ls", "-la"]])
def test_a_command_without_its_mark_is_shown_with_it(thopters: Thopters, words: list[str]) -> None:
    done = thopters("exec", "dev", *words)
    own = words[words.index("ls") :]
    assert (done.code, done.out) == (2, "")
    assert f"hint: thopters exec dev -- {shlex.join(own)}\n" in done.err


def test_errors_in_json(thopters: Thopters, emulator: Emulator) -> None:
    done = thopters("url", "nope", "--json")
    assert done.code == 3
    assert json.loads(done.out)["error"]["code"] == "not_found"
    assert json.loads(done.out)["schema_version"] == 1
    done = thopters("list", "--json", "--nonsense")
    assert done.code == 2
    assert json.loads(done.out)["error"]["code"] == "usage"


@both
def test_version_and_help(thopters: Thopters) -> None:
    for words in (["--debug", "--version"], ["-v", "--debug", "--help"]):
        assert thopters(*words).out == thopters(words[-1]).out != ""
    done = thopters("--version")
    assert (done.code, done.err) == (0, "")
    assert re.match(r"thopters \d+\.\d+\.\d+ \(Python 3\.\d+", done.out)
    for words in ([], ["--help"], ["-h"], ["help"]):
        done = thopters(*words)
        assert done.code == 0
        assert "usage: thopters" in done.out
    for name in ("create", "ls", "exec", "restore"):
        assert thopters("help", name).out == thopters(name, "--help").out
        assert "examples:" in thopters("help", name).out


def test_unknown_words(thopters: Thopters) -> None:
    done = thopters("lst")
    assert done.code == 2
    assert "did you mean list?" in done.err or "did you mean ls?" in done.err
    assert thopters("--frob").code == 2
    assert thopters("list", "--frob").code == 2
    # what is missing stands in the option that is misspelt
    done = thopters("hold", "dev", "--fro", "2h")
    assert (done.code, done.out) == (2, "")
    assert "unrecognized arguments: --fro\nhint: did you mean --for?\n" in done.err
    # the marked command is not looked at, and what stands before it is
    done = thopters("exec", "dev", "--dri", "src", "--", "ls", "--yes")
    assert (done.code, done.out) == (2, "")
    assert "hint: did you mean --dir?\n" in done.err


def test_rm_is_another_name_of_destroy(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev")
    done = thopters("rm", "dev")  # which needs the same consent
    assert (done.code, list(emulator.sprites)) == (2, ["dev"])
    done = thopters("rm", "dev", "--yes")
    assert (done.code, done.out, list(emulator.sprites)) == (0, "destroyed dev\n", [])


def test_debug_shows_requests_and_no_secret(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev")
    for words in (["--debug", "list", "--prefix", "d"], ["list", "--debug", "--prefix", "d"]):
        done = thopters(*words)
        assert "debug: GET /v1/sprites -> 200 in " in done.err
        assert "prefix" not in done.err
        assert emulator.token.rpartition("/")[2] not in done.err + done.out


def test_closed_pipe_and_full_disk(thopters: Thopters, emulator: Emulator) -> None:
    for number in range(40):
        emulator.add_sprite(f"sprite-{number:03}")
    program = " ".join(thopters.argv)
    done = subprocess.run(
        ["bash", "-c", f"{program} list | head -1; echo ${{PIPESTATUS[0]}}"],
        env=thopters.env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[0].startswith("sprite-000\t")
    assert done.stdout.splitlines()[1] in ("0", "141")
    assert "Traceback" not in done.stderr
    if Path("/dev/full").exists():
        with open("/dev/full", "wb") as full:
            process = thopters.start("list", stdout=full)
            _, err = process.communicate(timeout=30)
        assert process.returncode == 1
        assert b"thopters: error: cannot write the output: No space left" in err
        assert b"Traceback" not in err


@pytest.mark.parametrize("encoding", ["C", "POSIX", "C.UTF-8", "en_US.ISO-8859-1"])
def test_any_locale(thopters: Thopters, emulator: Emulator, encoding: str) -> None:
    emulator.add_sprite("dev", status="running").add_checkpoint("naïve ☃ \x1b[2J\u202e")
    env = {"LC_ALL": encoding, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = thopters("checkpoints", "dev", env=env)
    assert (done.code, done.err) == (0, "")
    assert b"\x1b" not in done.out_bytes
    assert done.out.split("\t")[2].endswith("\\x1b[2J\\u202e\n")


@both
def test_no_warnings_of_python(thopters: Thopters, emulator: Emulator) -> None:
    thopters.argv[1:1] = ["-X", "dev", "-W", "error"]
    emulator.personality.wake_503 = 0
    for words in (
        ["create", "dev"], ["list"], ["exec", "dev", "--", "true"], ["checkpoint", "dev"],
        ["restore", "dev", "v1", "--yes"], ["destroy", "dev", "--yes"], ["url", "nope"],
    ):  # fmt: skip
        done = thopters(*words)
        assert "Warning" not in done.err, done
        assert done.code in (0, 3)


# As python3-minimal and a Python that was built without OpenSSL are: imports of some modules fail
INCOMPLETE = """\
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise {error}
sys.meta_path.insert(0, Absent())
"""
NOT_FOUND = 'ModuleNotFoundError(f"No module named {name!r}", name=name)'
NOT_LOADED = 'ImportError("libssl.so.3: cannot open shared object file", name=name)'


def take_away(thopters: Thopters, names: list[str], error: str = NOT_FOUND) -> None:
    folder = thopters.home / "incomplete"
    folder.mkdir(exist_ok=True)
    text = INCOMPLETE.format(names=names, error=error)
    (folder / "sitecustomize.py").write_text(text)
    thopters.env["PYTHONPATH"] = str(folder)


@pytest.mark.parametrize(
    "module", ["json", "ssl", "_ssl", "http.client", "urllib.request", "argparse", "email.message"]
)
def test_h4_a_python_without_a_module_is_said_in_two_lines(
    thopters: Thopters, emulator: Emulator, module: str
) -> None:
    take_away(thopters, [module])
    assert thopters("--version").code == 0
    for words in (["list"], ["list", "--json"], ["exec", "dev", "--", "true"], ["url"]):
        done = thopters(*words, env={"THOPTERS_DEBUG": "1"})
        if words == ["url"] and f"lacks {module}\n" not in done.err:
            continue  # wrong usage, which is told without that module
        assert done.code == 2, done
        message = f"this Python {sys.version.split()[0]} is not complete: it lacks {module}"
        if done.out:
            assert json.loads(done.out)["error"]["message"] == message and "--json" in words
            continue
        assert module == "json" or "--json" not in words, done
        error, hint = done.err.splitlines()[-2:]
        assert error == f"thopters: error: {message}" and hint.startswith("hint: install all of it")
        assert "Traceback" not in done.err and "bug" not in done.err, done
    assert not len(emulator.journal)


def test_h4_an_error_of_the_users_own_is_no_reason_for_a_traceback(thopters: Thopters) -> None:
    """What strikes secrets out of it wants modules as well."""
    take_away(thopters, ["json", "difflib", "re"])
    for words in (["exec"], ["lst"], ["url"]):
        done = thopters(*words)
        assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 2), done
        assert done.err.startswith("thopters: error: this Python "), done


def test_h4_a_library_that_is_missing_is_named(thopters: Thopters, emulator: Emulator) -> None:
    take_away(thopters, ["_ssl"], NOT_LOADED)
    done = thopters("list")
    assert done.code == 2
    assert "it lacks _ssl: libssl.so.3: cannot open shared object file\nhint: " in done.err


def test_nothing_is_written_at_home_but_the_cache(thopters: Thopters, emulator: Emulator) -> None:
    emulator.add_sprite("dev")
    before = {*os.listdir(thopters.home), ".cache"}
    for words in (["list"], ["exec", "dev", "--", "true"], ["checkpoint", "dev"]):
        assert thopters(*words).code == 0
    assert set(os.listdir(thopters.home)) == before
    assert os.listdir(thopters.home / ".cache") == ["thopters"]
    assert emulator.journal.oddities == []


# commands of two words


DECLARED = """\
import sys
sys.path.insert(0, sys.argv.pop(1))
import thopters
from thopters import Argument, Command

@Command("box set", "store a key", Argument("key", metavar="KEY"), Argument("--for"),
         examples=("thopters box set KEY",))
def cmd_box_set(app, args):
    app.console.answer(f"set {args.key} {getattr(args, 'for')} {args.verbose}")
    return 0

@Command("box list", "show the keys", examples=("thopters box list",), aliases=("box ls",))
def cmd_box_list(app, args):
    app.console.answer("listed")
    return 0

thopters.leave(thopters.main())
"""


def run(*words: str) -> tuple[int, str, str]:
    argv = [sys.executable, "-c", DECLARED, str(ROOT), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "out"),
    [
        (["box", "set", "A"], "set A None False\n"),
        (["-v", "box", "set", "--for", "x", "A"], "set A x True\n"),
        (["box", "set", "set"], "set set None False\n"),
        (["box", "list"], "listed\n"),
        (["box", "ls"], "listed\n"),
    ],
)
def test_a_command_may_have_two_words(words: list[str], out: str) -> None:
    assert run(*words) == (0, out, "")


@pytest.mark.parametrize(
    "words", [["help", "box", "set"], ["box", "set", "--help"], ["box", "set", "-h"]]
)
def test_its_help_is_made_as_any_other(words: list[str]) -> None:
    code, out, _ = run(*words)
    assert code == 0
    assert out.startswith("usage: thopters box set [-h] [--for FOR] [-v] [--debug] KEY\n")
    assert "store a key" in out
    assert out.endswith("examples:\n  thopters box set KEY\n")


@pytest.mark.parametrize("words", [["help", "box"], ["box", "--help"], ["box", "-h"]])
def test_the_first_word_alone_shows_those_that_begin_with_it(words: list[str]) -> None:
    code, out, _ = run(*words)
    assert code == 0
    assert out.splitlines() == [
        "commands:",
        "  box set         store a key",
        "  box list, box ls  show the keys",
    ]
    assert "  box set         store a key\n" in run("--help")[1]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["box"], "box needs a second word: set, list, ls", "see: thopters help box"),
        (["box", "sett"], "box needs a second word: set, list, ls", "see: thopters help box"),
        (["box", "set"], "the following arguments are required: KEY", "thopters box set --help"),
        (["help", "box", "set", "more"], "'more' is left over", ""),
        (["help", "list", "more"], "'more' is left over", ""),
    ],
)
def test_its_usage_errors_name_both_words(words: list[str], message: str, hint: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err and hint in err
