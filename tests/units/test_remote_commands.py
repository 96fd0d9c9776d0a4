"""What runs a command in a sprite: the script that is sent, and the status that comes back."""

from __future__ import annotations

import ast
import random
import re
import shutil
import signal
import subprocess
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


def run_command(
    folder: Path,
    command: thopters.RemoteCommand,
    data: bytes = b"",
    environ: dict[str, str] | None = None,
) -> tuple[bytes, bytes]:
    """Run a command that succeeds, and return what it wrote to each stream, without our marks."""
    done = run_script(folder, command.stream_script() + b"\0" + data, environ)
    assert done.returncode == 0, done
    mark = b"%s0\n" % command.mark
    preamble, _, told = done.stdout.partition(b"\n")
    assert re.fullmatch(rb"thopters-exec [0-9]+", preamble)
    assert told.endswith(mark), done
    assert done.stderr.endswith(mark), done
    return told.removesuffix(mark), done.stderr.removesuffix(mark)


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
    command = thopters.RemoteCommand(
        [sys.executable.encode(), b"-c", TELL.encode(), *words],
        env=list(variables.items()),
        directory=directory.encode(),
    )
    told, err = run_command(tmp_path, command, b"the rest\0\xff")
    assert err == b""
    argv, env, cwd, stdin = ast.literal_eval(told.decode())
    assert argv == words
    assert {name: env.get(name.encode()) for name in names} == variables
    assert cwd == str(place).encode()
    assert stdin == b"the rest\0\xff"


def test_s18_input_that_goes_ahead_in_pieces_can_be_read_by_nobody_else(tmp_path: Path) -> None:
    """It waits in a file of the home until the command takes it."""
    for place, piece in ((b"0", b"first"), (b"5", b"second")):
        words = [b"bash", b"-c", thopters.PIECE_SCRIPT, b"thopters", b"file", place]
        script = thopters.RemoteCommand(words, with_keys=False).stream_script()
        done = run_script(tmp_path, b"umask 0\n" + script + b"\0" + piece)
        assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "file").read_bytes() == b"firstsecond"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_a_relative_directory_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    for folder in ("src", "else/src"):
        (tmp_path / folder).mkdir(parents=True)
    environ = {"CDPATH": str(tmp_path / "else")}
    command = thopters.RemoteCommand([b"pwd"], directory=b"src")
    assert run_command(tmp_path, command, environ=environ)[0] == f"{tmp_path}/src\n".encode()
    command = thopters.RemoteCommand([b"printenv", b"CDPATH"])
    assert run_command(tmp_path, command, environ=environ)[0] == f"{environ['CDPATH']}\n".encode()


def test_a_script_that_is_cut_short_does_not_run(tmp_path: Path) -> None:
    script = thopters.RemoteCommand([b"touch", b"ran"]).stream_script()
    for size in [*range(0, len(script), 10), len(script)]:
        done = run_script(tmp_path, script[:size])
        assert (done.returncode, done.stdout, done.stderr) == (255, b"", b"")
    assert list(tmp_path.iterdir()) == []
    assert run_script(tmp_path, script + b"\0").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ran"]


@pytest.mark.parametrize("options", ["posix", "errexit", "nounset", "errexit:posix:noclobber"])
@pytest.mark.parametrize("status", [0, 7])
def test_p9_the_end_is_marked_in_every_mode_of_bash(
    tmp_path: Path, options: str, status: int
) -> None:
    """A sprite's own variables can set one, and the command gets them as they are."""
    command = thopters.RemoteCommand([b"sh", b"-c", b"echo $SHELLOPTS; exit %d" % status])
    done = run_script(tmp_path, command.stream_script() + b"\0", {"SHELLOPTS": options})
    mark = b"%s%d\n" % (command.mark, status)
    assert (done.returncode, done.stderr) == (status, mark)
    _, told, rest = done.stdout.split(b"\n", 2)
    assert (set(options.split(":")) - set(told.decode().split(":")), rest) == (set(), mark)


def test_p9_a_command_whose_wrapper_is_killed_at_once_is_killed_too(tmp_path: Path) -> None:
    """It would hold the streams, whose end is waited for."""
    script = thopters.RemoteCommand([b"sleep", b"600"]).stream_script()
    begun = b") <&0 &\n"
    assert begun in script
    done = run_script(tmp_path, script.replace(begun, begun + b"kill -s KILL $$\n") + b"\0")
    assert done.returncode == -signal.SIGKILL


def test_a_session_is_signalled_without_programs_too(tmp_path: Path) -> None:
    """An image may lack pgrep and pkill."""
    (tmp_path / "bash").symlink_to(str(shutil.which("bash")))
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        words = [thopters.SIGNAL_SCRIPT, b"thopters", b"%d" % process.pid, b"TERM", b"", b"0"]
        script = thopters.RemoteCommand([b"bash", b"-c", *words], with_keys=False).stream_script()
        done = run_script(tmp_path, b"PATH=%s\n" % bytes(tmp_path) + script + b"\0")
        process.kill()  # where it was not reached
    assert (done.returncode, process.returncode) == (thopters.GROUP_STAYS, -signal.SIGTERM)


# The end: our marks among the output


MARK = b"\x1dthopters-end 0123456789abcdef "
BEFORE = b"\1thopters-exec 7\n"
STREAMS = [
    (1, b"some\x1d out"),
    (2, b"\x1dthopters-end 0"),
    (1, MARK + b"42\n"),
    (2, MARK + b"42\n"),
]


def decode(messages: list[bytes], decoder: thopters.ExecDecoder | None = None) -> tuple[bytes, ...]:
    """Return what each stream brought, and the status, up to the end."""
    decoder = decoder or thopters.ExecDecoder()
    decoder.mark = MARK
    out = {1: b"", 2: b""}
    for message in [BEFORE, *messages]:
        for event in decoder.message(thopters.OP_BINARY, message):
            if isinstance(event, thopters.Output):
                out[event.stream] += bytes(event.data)
            elif isinstance(event, (thopters.Ended, thopters.Exit)):
                return out[1], out[2], str(event.status).encode()
    return out[1], out[2], b""


@pytest.mark.parametrize("joined", [False, True])
def test_p9_the_marks_are_found_however_they_are_cut(joined: bool) -> None:
    messages = [(1 if joined else stream, data) for stream, data in STREAMS]
    out = b"some\x1d out" + (b"\x1dthopters-end 0" if joined else b"")
    err = b"" if joined else b"\x1dthopters-end 0"
    for size in range(1, 60):
        parts = [
            bytes((stream,)) + data[start : start + size]
            for stream, data in messages
            for start in range(0, len(data), size)
        ]
        assert decode(parts) == (out, err, b"42")


def test_p9_one_mark_is_not_the_end_and_what_comes_meanwhile_is_shown() -> None:
    first, last = bytes((1,)) + MARK + b"0\nof a child", b"\2late" + MARK + b"0\nlater"
    assert decode([first]) == (b"of a child", b"", b"")
    assert decode([first, b"\1", last]) == (b"of a child", b"late", b"0")


def test_p9_the_platforms_status_is_good_too() -> None:
    """What was held back comes before it."""
    assert decode([b"\1ab\x1dthop", b"\2\x1d", b"\3\7"]) == (b"ab\x1dthop", b"\x1d", b"7")


@pytest.mark.parametrize("rest", [b"1234", b"x\n", b"-1\n", b"9" * 1000])
def test_p9_a_mark_without_a_status_is_not_an_end(rest: bytes) -> None:
    with pytest.raises(thopters.Garbled):
        decode([b"\1" + MARK + rest])


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
