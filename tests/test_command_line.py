"""Commands as declarations: what is made of them, and commands of two words.

The program has none of two words yet, so a child Python declares some before it runs it.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.program import ROOT

DECLARED = """\
import sys
sys.path.insert(0, sys.argv.pop(1))
import thopters
from thopters import Argument, Command

@Command("env set", "store a key", Argument("key", metavar="KEY"), Argument("--for"),
         examples=("thopters env set KEY",))
def cmd_env_set(app, args):
    app.console.answer(f"set {args.key} {getattr(args, 'for')} {args.verbose}")
    return 0

@Command("env list", "show the keys", examples=("thopters env list",), aliases=("env ls",))
def cmd_env_list(app, args):
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
        (["env", "set", "A"], "set A None False\n"),
        (["-v", "env", "set", "--for", "x", "A"], "set A x True\n"),
        (["env", "set", "set"], "set set None False\n"),
        (["env", "list"], "listed\n"),
        (["env", "ls"], "listed\n"),
    ],
)
def test_a_command_may_have_two_words(words: list[str], out: str) -> None:
    assert run(*words) == (0, out, "")


@pytest.mark.parametrize(
    "words", [["help", "env", "set"], ["env", "set", "--help"], ["env", "set", "-h"]]
)
def test_its_help_is_made_as_any_other(words: list[str]) -> None:
    code, out, _ = run(*words)
    assert code == 0
    assert out.startswith("usage: thopters env set [-h] [--for FOR] [-v] [--debug] KEY\n")
    assert "store a key" in out
    assert out.endswith("examples:\n  thopters env set KEY\n")


@pytest.mark.parametrize("words", [["help", "env"], ["env", "--help"], ["env", "-h"]])
def test_the_first_word_alone_shows_those_that_begin_with_it(words: list[str]) -> None:
    code, out, _ = run(*words)
    assert code == 0
    assert out.splitlines() == [
        "commands:",
        "  env set         store a key",
        "  env list, env ls  show the keys",
    ]
    assert "  env set         store a key\n" in run("--help")[1]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["env"], "env needs a second word: set, list, ls", "see: thopters help env"),
        (["env", "sett"], "env needs a second word: set, list, ls", "see: thopters help env"),
        (["env", "set"], "the following arguments are required: KEY", "thopters env set --help"),
        (["help", "env", "set", "more"], "'more' is left over", ""),
        (["help", "list", "more"], "'more' is left over", ""),
    ],
)
def test_its_usage_errors_name_both_words(words: list[str], message: str, hint: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err and hint in err
