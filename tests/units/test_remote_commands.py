"""What runs a command in a sprite: the script that is sent, and the status that comes back."""

from __future__ import annotations

import ast
import random
import re
import sys
from pathlib import Path

import pytest
from support.scripts import run_script
from support.words import nasty_words

import thopters

# the script


TELL = """\
import os, sys
argv = [os.fsencode(word) for word in sys.argv[1:]]
print(repr((argv, dict(os.environb), os.getcwdb(), sys.stdin.buffer.read())))
"""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("directory", ["", "-", "-P", "--", "~", "$HOME", "a 'b'\n", "é\\"])
def test_a_command_gets_its_words_variables_directory_and_input(
    tmp_path: Path, directory: str, seed: int
) -> None:
    words = nasty_words(seed, 200)[:-1]  # the long one is more than a system call takes
    names = ("A", "_b9", "IFS", "LC_MESSAGES", "PATH_2", "TZ")
    variables = dict(zip(names, random.Random(seed).sample(words, len(names)), strict=True))
    place = tmp_path / directory
    place.mkdir(exist_ok=True)
    script = thopters.RemoteCommand(
        [sys.executable.encode(), b"-c", TELL.encode(), *words],
        env=list(variables.items()),
        directory=directory.encode(),
    ).script()
    done = run_script(tmp_path, script + b"\0the rest\0\xff")
    assert (done.returncode, done.stderr) == (0, b"")
    preamble, _, told = done.stdout.partition(b"\n")
    assert re.fullmatch(rb"thopters-exec [0-9]+", preamble)
    argv, env, cwd, stdin = ast.literal_eval(told.decode())
    assert argv == words
    assert {name: env.get(name.encode()) for name in names} == variables
    assert cwd == str(place).encode()
    assert stdin == b"the rest\0\xff"


def test_a_relative_directory_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    for folder in ("src", "else/src"):
        (tmp_path / folder).mkdir(parents=True)
    environ = {"CDPATH": str(tmp_path / "else")}
    done = run_script(
        tmp_path, thopters.RemoteCommand([b"pwd"], directory=b"src").script() + b"\0", environ
    )
    assert done.stdout.splitlines()[1:] == [str(tmp_path / "src").encode()]
    done = run_script(
        tmp_path, thopters.RemoteCommand([b"printenv", b"CDPATH"]).script() + b"\0", environ
    )
    assert done.stdout.splitlines()[1:] == [environ["CDPATH"].encode()]


def test_a_script_that_is_cut_short_does_not_run(tmp_path: Path) -> None:
    script = thopters.RemoteCommand([b"touch", b"ran"]).script()
    for size in [*range(0, len(script), 10), len(script)]:
        done = run_script(tmp_path, script[:size])
        assert (done.returncode, done.stdout, done.stderr) == (255, b"", b"")
    assert list(tmp_path.iterdir()) == []
    assert run_script(tmp_path, script + b"\0").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ran"]


# the status


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (b'{"type": "exit", "exit_code": 0}', 0),
        (b'{"type": "exit", "exit_code": 7}', 7),
        (b'{"type": "exit", "code": 7}', 7),
        (b'{"type": "exit", "exit_code": 7, "code": 8}', 7),
        (b'{"type": "exit", "exit_code": 255}', 255),
        (b'{"type": "exit", "exit_code": 256}', 255),
        (b'{"type": "exit", "exit_code": -1}', 255),
        (b'{"type": "exit", "exit_code": 1000000000000}', 255),
        (b'{"type": "session_info", "exit_code": 7}', None),
        (b'{"exit_code": 7}', None),
        (b'{"type": ["exit"]}', None),
        (b"", None),
        (b"7", None),
        (b'["exit", 7]', None),
        (b"null", None),
        (b"exit 7", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_the_exit_status_in_a_text_message(message: bytes, status: int | None) -> None:
    assert thopters.exit_status_of_text(message) == status


@pytest.mark.parametrize("code", [b"null", b'"7"', b"7.0", b"true", b"[]"])
@pytest.mark.parametrize("name", [b"exit_code", b"code"])
def test_an_exit_without_a_status_is_no_success(name: bytes, code: bytes) -> None:
    with pytest.raises(thopters.Garbled, match="no status"):
        thopters.exit_status_of_text(b'{"type": "exit", "%s": %s}' % (name, code))
    with pytest.raises(thopters.Garbled, match="no status"):
        thopters.exit_status_of_text(b'{"type": "exit"}')


def test_s8_what_stands_before_a_command_is_not_searched_without_end() -> None:
    """It is looked through whenever something comes, so it may not grow for long."""
    for decoder in (thopters.ExecDecoder(), thopters.TerminalDecoder(attached=False)):
        with pytest.raises(thopters.Garbled):
            for _ in range(20_000):
                list(decoder.message(thopters.OP_BINARY, b"\1x"))


def test_s8_what_is_kept_has_a_limit() -> None:
    limit = thopters.Kept.LIMIT
    all_of_it, first, last = thopters.Kept(), thopters.Kept(), thopters.Kept()
    for data in (b"a", memoryview(b"b" * (limit - 1)), b"cd"):
        first.take_first(data)
        last.take_last(data)
    assert bytes(first) == b"a" + b"b" * (limit - 1)
    assert bytes(last) == b"b" * (limit - 2) + b"cd"
    all_of_it.take(b"a" * limit)
    with pytest.raises(thopters.Garbled):
        all_of_it.take(b"b")
    assert len(all_of_it) == limit
