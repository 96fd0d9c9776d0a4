"""The small units that a run of the whole program can't reach well.

Real shells, an encoder of our own and tables of cases judge them; time and chance are brought
along, and nothing goes out to a network.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import copy
import datetime
import errno
import fcntl
import hashlib
import http.client
import io
import itertools
import json
import os
import pickle
import pprint
import random
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import symtable
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from support.frames import BROKEN_FRAMES, cut, server_frame
from support.program import ROOT
from support.scripts import run_script
from support.units import (
    CANARY,
    NOW,
    UTC,
    FakeClock,
    Terminal,
    make_answer,
    make_console,
    make_transport,
)
from support.words import TWISTED, nasty_words

import thopters
from thopters import AMBIGUOUS, BUSY, NOT_SENT, STARTING, WAKING

# quoting, against real shells


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("shell", ["bash", "dash", "zsh"])
def test_a_shell_reads_a_quoted_argument_as_what_it_was(
    tmp_path: Path, shell: str, locale: str
) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    words = nasty_words(seed=1, count=20_000)
    script = tmp_path / "script"
    with script.open("wb") as file:
        for start in range(0, len(words), 40):
            quoted = map(thopters.quote_argument, words[start : start + 40])
            file.write(b"printf '%s\\0' " + b" ".join(quoted) + b"\n")
    done = subprocess.run(
        [program, str(script)],
        env={"PATH": "/nonexistent", "LC_ALL": locale},
        capture_output=True,
        timeout=60,
    )
    came = done.stdout.split(b"\0")[:-1]
    wrong = [(word, got) for word, got in zip(words, came, strict=False) if word != got]
    assert (wrong[:3], len(came), done.returncode) == ([], len(words), 0)


# the script of exec

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
    script = thopters.exec_script(
        [sys.executable.encode(), b"-c", TELL.encode(), *words],
        env=list(variables.items()),
        directory=directory.encode(),
    )
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
    done = run_script(tmp_path, thopters.exec_script([b"pwd"], directory=b"src") + b"\0", environ)
    assert done.stdout.splitlines()[1:] == [str(tmp_path / "src").encode()]
    done = run_script(tmp_path, thopters.exec_script([b"printenv", b"CDPATH"]) + b"\0", environ)
    assert done.stdout.splitlines()[1:] == [environ["CDPATH"].encode()]


def test_a_script_that_is_cut_short_does_not_run(tmp_path: Path) -> None:
    script = thopters.exec_script([b"touch", b"ran"])
    for size in [*range(0, len(script), 10), len(script)]:
        done = run_script(tmp_path, script[:size])
        assert (done.returncode, done.stdout, done.stderr) == (255, b"", b"")
    assert list(tmp_path.iterdir()) == []
    assert run_script(tmp_path, script + b"\0").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["ran"]


# websocket frames: what the server sends

SIZES = (0, 1, 2, 125, 126, 127, 65535, 65536, 65537)
Messages = list[tuple[int, bytes]]


def random_frames(rng: random.Random, count: int, sizes: Sequence[int]) -> tuple[bytes, Messages]:
    """Return a stream, whole and fragmented messages with control frames between, and the
    messages that it holds."""
    stream = bytearray()
    messages: Messages = []

    def control() -> None:
        opcode, payload = rng.choice((8, 9, 10)), rng.randbytes(rng.choice((0, 1, 60, 125)))
        stream.extend(server_frame(opcode, payload))
        messages.append((opcode, payload))

    for _ in range(count):
        opcode, payload = rng.choice((1, 2)), rng.randbytes(rng.choice(sizes))
        pieces = cut(payload, (rng.randint(0, len(payload)) for _ in range(rng.randrange(4))))
        for number, piece in enumerate(pieces):
            if rng.random() < 0.4:
                control()
            last = number == len(pieces) - 1
            stream += server_frame(0 if number else opcode, piece, final=last)
        messages.append((opcode, payload))
    return bytes(stream), messages


def feed(parser: thopters.FrameParser, pieces: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Have the parser receive `pieces`, and yield what comes out."""
    for opcode, payload in parser.messages():  # of the bytes that came early
        yield opcode, bytes(payload)
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            room = parser.space()
            count = min(len(room), len(rest))
            assert count, "the parser has no room left"
            room[:count] = rest[:count]
            parser.received(count)
            rest = rest[count:]
            for opcode, payload in parser.messages():
                yield opcode, bytes(payload)


def test_frames_are_the_same_messages_wherever_the_stream_is_cut() -> None:
    stream, messages = random_frames(random.Random(1), 12, (0, 1, 5, 125, 126, 130))
    assert {1, 2, 8, 9, 10} == {opcode for opcode, _ in messages}
    for place in range(len(stream) + 1):
        early, late = cut(stream, [place])
        assert list(feed(thopters.FrameParser(early), [late])) == messages
    byte_by_byte = cut(stream, range(1, len(stream)))
    assert list(feed(thopters.FrameParser(b""), byte_by_byte)) == messages


@pytest.mark.parametrize("seed", range(8))
def test_frames_of_every_size_survive_random_cuts(seed: int) -> None:
    rng = random.Random(seed)
    stream, messages = random_frames(rng, 30, SIZES)
    places = rng.sample(range(1, len(stream)), rng.choice((1, 50, 2000)))
    early, *pieces = cut(stream, places)
    assert list(feed(thopters.FrameParser(early), pieces)) == messages


def test_the_end_of_the_stream_is_no_end_in_the_middle_of_a_message() -> None:
    half, last = server_frame(1, b"a", final=False), server_frame(0, b"b")
    ping, stream = server_frame(9, b"p"), server_frame(2, b"x" * 300)
    stream += half + ping + last + ping
    between = {0, len(stream) - len(ping), len(stream)}
    between.add(len(server_frame(2, b"x" * 300)))
    for size in range(len(stream) + 1):
        parser = thopters.FrameParser(b"")
        list(feed(parser, [stream[:size]]))
        assert parser.is_amid() == (size not in between), size


@pytest.mark.parametrize("size", SIZES)
def test_a_message_comes_with_its_last_byte_and_not_before(size: int) -> None:
    payload = random.Random(size).randbytes(size)
    stream = server_frame(2, payload)
    parser = thopters.FrameParser(b"")
    assert list(feed(parser, [stream[:-1]])) == []
    assert list(feed(parser, [stream[-1:]])) == [(2, payload)]


def test_the_buffer_holds_a_large_message_and_does_not_grow_with_what_has_passed() -> None:
    rng = random.Random(1)
    large, small = rng.randbytes(5_000_000), rng.randbytes(60_000)
    parser = thopters.FrameParser(b"")
    for _ in range(200):
        assert list(feed(parser, [server_frame(2, small)])) == [(2, small)]
        assert len(parser.space()) <= parser.ROOM
    pieces = cut(server_frame(2, large), range(50_000, 5_000_000, 50_000))
    assert list(feed(parser, pieces)) == [(2, large)]
    largest = len(parser.space())
    assert list(feed(parser, pieces * 3)) == [(2, large)] * 3
    assert len(parser.space()) == largest


@pytest.mark.parametrize("broken", BROKEN_FRAMES.values(), ids=BROKEN_FRAMES.keys())
@pytest.mark.parametrize("whole", [True, False])
def test_a_broken_frame_ends_the_connection_after_what_was_good(broken: bytes, whole: bool) -> None:
    stream = server_frame(2, b"good") + broken
    pieces = [stream] if whole else cut(stream, range(1, len(stream)))
    came: Messages = []
    with pytest.raises(thopters.WebSocketLost):
        for message in feed(thopters.FrameParser(b""), pieces):
            came.append(message)
    assert came in ([(2, b"good")], [(2, b"good"), (1, b"begunx")])


def test_a_message_may_be_as_long_as_the_limit_and_not_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(thopters, "MAX_MESSAGE_BYTES", 1000)
    whole = server_frame(2, bytes(1000))
    halves = server_frame(2, bytes(500), final=False) + server_frame(0, bytes(500))
    good = [(2, bytes(1000))]
    assert list(feed(thopters.FrameParser(b""), [whole, halves])) == good * 2
    head = server_frame(2, bytes(1001))[:4]
    pieces = server_frame(2, bytes(500), final=False) + server_frame(0, bytes(501), final=False)
    for long in (head, pieces):
        with pytest.raises(thopters.WebSocketLost, match="too long"):
            list(feed(thopters.FrameParser(b""), [long]))


# websocket frames: what we send


def xor(payload: bytes, key: bytes) -> bytes:
    return bytes(byte ^ key[place % 4] for place, byte in enumerate(payload))


@pytest.mark.parametrize("size", [*range(20), *SIZES])
def test_a_mask_is_the_key_xored_over_and_over(size: int) -> None:
    rng = random.Random(size)
    for key in (rng.randbytes(4), b"\0\0\0\0", b"\xff\0\0\0"):
        payload = rng.randbytes(size)
        assert thopters.mask(payload, key) == xor(payload, key)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opcode", [1, 2, 8, 9, 10])
def test_a_sent_frame_is_final_masked_and_minimal(opcode: int, size: int) -> None:
    rng = random.Random(size)
    payload, key = rng.randbytes(size), rng.randbytes(4)
    head = bytearray(server_frame(opcode, payload)[: -size or None])
    head[1] |= 0x80
    assert thopters.encode_frame(opcode, payload, key) == bytes(head) + key + xor(payload, key)


@pytest.mark.parametrize(
    ("payload", "words", "is_end"),
    [
        (b"", "the connection was closed", True),
        (b"\x03", "the connection was closed", True),
        (b"\x03\xe8", "closed with code 1000", True),
        (b"\x03\xe9going", "closed with code 1001: going", True),
        (b"\x0f\xa0bye", "closed with code 4000: bye", False),
        (b"\x03\xf3\xff", "closed with code 1011: \ufffd", False),
    ],
)
def test_the_reason_of_a_close(payload: bytes, words: str, is_end: bool) -> None:
    lost = thopters.end_of(payload)
    assert (str(lost), lost.is_end) == (words, is_end)


def test_descriptors_above_what_select_can_hold_are_waited_for() -> None:
    ours, theirs = socket.socketpair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("so many descriptors can't be had here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    high = socket.socket(fileno=fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD, 1500))
    try:
        with ours, theirs, high:
            assert thopters.wait_for([high], [], 0) == ([], [])
            assert thopters.wait_for([high], [high], None) == ([], [high])
            theirs.send(b"x")
            assert thopters.wait_for([high, theirs], [high], 10) == ([high], [high])
            theirs.shutdown(socket.SHUT_RDWR)
            assert thopters.wait_for([high], [], 10) == ([high], [])
        with pytest.raises(ValueError):
            thopters.wait_for([high], [], 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_signal_is_not_lost_where_python_drops_exceptions() -> None:
    script = (
        "import os, signal, time, thopters\n"
        "class Dropped:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(0)\n"
        "thopters.StopSignals().catch()\n"
        "try:\n"
        "    Dropped()\n"
        "    print('dropped', flush=True)\n"
        "    time.sleep(60)\n"
        "except thopters.Interrupted as interrupted:\n"
        "    print(interrupted.signum)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=50
    )
    assert (done.stdout, done.stderr) == (f"dropped\n{signal.SIGTERM:d}\n", "")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    "happens",
    [
        "class Dropped:\n    def __del__(self):\n        send()\nDropped()",
        "try:\n    send()\nfinally:\n    threading.Lock().release()",
    ],
    ids=["python drops it", "a lock makes it another error"],
)
def test_a_signal_that_gets_lost_ends_the_program_all_the_same(happens: str) -> None:
    script = (
        "import argparse, os, signal, threading, thopters\n"
        "def send():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "class Nothing:\n"
        "    run = staticmethod(lambda app, args: 0)\n"
        "def parse(argv):\n"
        f"    exec({happens!r}, globals())\n"
        "    return Nothing, argparse.Namespace(verbose=False, debug=False)\n"
        "thopters.parse = parse\n"
        "thopters.leave(thopters.main(['list']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=50
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")
    assert done.stderr == "thopters: interrupted\n"


@pytest.mark.parametrize("body", [b'{"errors": [[1]]}', b'{"detail": [1]}', b"[[1]]"])
def test_an_answer_that_is_too_deep_to_be_written_again_is_told(
    monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    """That it can be read and not be written is so at one depth in thousands."""

    def too_deep(*_: object, **__: object) -> None:
        raise RecursionError

    monkeypatch.setattr(json, "dumps", too_deep)
    assert make_answer(400, body).reason() == "the answer is nested too deeply"


def test_a_reset_right_behind_the_upgrade_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes when the head is read, and before anything is waited for: rare in a process."""
    ours, theirs = socket.socketpair()

    class Connection(http.client.HTTPConnection):
        def request(self, method: str, url: str, *_: Any, headers: Any = None, **__: Any) -> None:
            key = headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            proof = base64.b64encode(hashlib.sha1(key.encode()).digest())  # noqa: S324
            theirs.sendall(b"HTTP/1.1 101 x\r\nSec-WebSocket-Accept: " + proof + b"\r\n\r\n")
            self.sock = ours

        def getresponse(self) -> http.client.HTTPResponse:
            response = http.client.HTTPResponse(ours)
            response.begin()
            response.fp = io.BufferedReader(Reset())
            return response

    class Reset(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    console = thopters.Console(io.StringIO(), io.StringIO(), {})
    credential = thopters.Credential(thopters.Secret("token"), "a test")
    transport = thopters.Transport(
        "http://127.0.0.1:1", credential, console=console, clock=thopters.Clock(), environ={}
    )
    monkeypatch.setattr(transport, "open_connection", lambda deadline: Connection("127.0.0.1", 1))
    with ours, theirs, pytest.raises(thopters.NoAnswerError, match="broke off"):
        thopters.open_websocket(transport, "/", 10.0)


# retries


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (429, "", BUSY),
        (429, "sprite_creation_rate_limited", BUSY),
        (429, "concurrent_sprite_limit_exceeded", None),
        (503, "sprite_starting", STARTING),
        (503, "", AMBIGUOUS),
        (503, "other", AMBIGUOUS),
        (503, "sprite_stopping", AMBIGUOUS),
        *((status, "sprite_starting", AMBIGUOUS) for status in (500, 504)),
        *((status, "", AMBIGUOUS) for status in (520, 524, 530, 599)),
        *((status, "", AMBIGUOUS) for status in (408, 500, 502, 504, 506, 507, 510, 512)),
        *((status, "", None) for status in (200, 201, 204, 301, 302, 307)),
        *((status, "", None) for status in (400, 401, 402, 403, 404, 407, 409, 422, 499)),
        *((status, "", None) for status in (501, 505, 511)),
        (404, "sprite_starting", None),
    ],
)
def test_what_kind_of_failure_an_answer_is(status: int, error: str, kind: str | None) -> None:
    answer = make_answer(status, json.dumps({"error": error}).encode())
    assert thopters.failure_kind(answer) == kind


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": {}}', b'{"error": ["x"]}'])
@pytest.mark.parametrize(("status", "kind"), [(429, BUSY), (503, AMBIGUOUS), (404, None)])
def test_a_failure_with_a_strange_body_goes_by_its_status(
    status: int, kind: str | None, body: bytes
) -> None:
    assert thopters.failure_kind(make_answer(status, body)) == kind


HTTP_DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
LATER = "Sun, 06 Nov 1994 08:50:07 GMT"


@pytest.mark.parametrize(
    "text",
    [
        HTTP_DATE,
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Sun, 06 Nov 1994 08:49:37 -0000",
        "Sun, 06 Nov 1994 10:49:37 +0200",
    ],
)
def test_a_date_of_http_in_every_form(text: str) -> None:
    moment = thopters.parse_http_date(text)
    assert moment == datetime.datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        " ",
        "0",
        "yesterday",
        "1994-11-06T08:49:37Z",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 25:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:60 GMT",
        "Sun, 06 Nov 1994 08:49:37 +9999",
        "Sun, 06 Nov 99999 08:49:37 GMT",
    ],
)
def test_what_is_no_date_of_http(text: str | None) -> None:
    assert thopters.parse_http_date(text) is None


@pytest.mark.parametrize(
    ("text", "date", "seconds"),
    [
        ("5", None, 5.0),
        ("0", None, 0.0),
        (" 30 ", None, 30.0),
        ("007", None, 7.0),
        ("9" * 5000, None, 999_999_999_999.0),
        (LATER, HTTP_DATE, 30.0),
        (HTTP_DATE, LATER, 0.0),
        (LATER, None, None),
        (LATER, "soon", None),
        ("soon", HTTP_DATE, None),
        (None, HTTP_DATE, None),
        ("", None, None),
        ("-5", None, 0.0),
        ("--5", None, None),
        ("1.5", None, None),
        ("1e3", None, None),
        ("٣", None, None),
        ("²", None, None),
    ],
)
def test_retry_after(text: str | None, date: str | None, seconds: float | None) -> None:
    assert thopters.parse_retry_after(text, date) == seconds


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        (b'{"retry_after_seconds": 3}', 3.0),
        (b'{"retry_after_seconds": 0.5}', 0.5),
        (b'{"retry_after_seconds": 0}', 0.0),
        (b'{"retry_after_seconds": -3}', 0.0),
        (b'{"retry_after_seconds": NaN}', 0.0),
        (b'{"retry_after_seconds": true}', 7.0),
        (b'{"retry_after_seconds": "3"}', 7.0),
        (b'{"retry_after_seconds": null}', 7.0),
        (b"{}", 7.0),
        (b"[3]", 7.0),
        (b"<html>", 7.0),
    ],
)
def test_the_bodys_wish_comes_before_the_headers(body: bytes, seconds: float) -> None:
    assert make_answer(429, body, Retry_After="7").asked_wait() == seconds


def test_a_date_to_wait_for_is_read_beside_the_servers_clock() -> None:
    assert make_answer(429, Retry_After=LATER, Date=HTTP_DATE).asked_wait() == 30.0
    assert make_answer(429, Retry_After=LATER).asked_wait() is None


@pytest.mark.parametrize(
    ("kind", "asked", "jitter", "waits"),
    [
        (NOT_SENT, None, 0.0, [0.25, 0.5, 1.0, None]),
        (AMBIGUOUS, None, 0.5, [0.375, 0.75, 1.5, None]),
        (NOT_SENT, 9.0, 0.0, [0.25, 0.5, 1.0, None]),
        (BUSY, None, 0.0, [60.0, 60.0, 60.0, None]),
        (BUSY, 0.0, 0.9, [0.0, 0.0, 0.0, None]),
        (BUSY, 60.0, 0.0, [60.0, 60.0, 60.0, None]),
        (BUSY, 60.1, 0.0, [None]),
        (STARTING, None, 0.0, [1.0] * 120 + [None]),
        (STARTING, 50.0, 0.0, [50.0, 50.0, None]),
        (STARTING, 1000.0, 0.0, [60.0, 60.0, None]),
        (STARTING, float("inf"), 0.0, [60.0, 60.0, None]),
        (STARTING, 0.0, 0.0, [0.1] * 100),
        (WAKING, None, 1.0, [0.5, 1.0, 2.0, *[4.0] * 6, None]),
        (WAKING, 60.0, 0.0, [0.25, 0.5, 1.0, *[2.0] * 14, None]),
    ],
)
def test_how_long_each_kind_of_failure_waits(
    kind: str, asked: float | None, jitter: float, waits: list[float | None]
) -> None:
    policy = thopters.RetryPolicy(repeatable=True)
    assert [policy.wait(kind, asked, jitter) for _ in waits] == waits


def test_what_may_have_been_done_is_not_repeated_unless_that_is_harmless() -> None:
    policy = thopters.RetryPolicy(repeatable=False)
    assert policy.wait(AMBIGUOUS, None, 0.0) is None
    assert [policy.wait(kind, 2.0, 0.0) for kind in (NOT_SENT, BUSY, STARTING)] == [0.25, 2.0, 2.0]


def test_the_limit_of_starting_is_the_callers_and_counts_every_wait() -> None:
    policy = thopters.RetryPolicy(repeatable=True, starting_limit_s=10.0)
    assert policy.wait(BUSY, 6.0, 0.0) == 6.0
    assert policy.wait(STARTING, 4.0, 0.0) == 4.0
    assert policy.wait(STARTING, None, 0.0) is None


def test_what_was_waited_for_otherwise_is_not_the_waking() -> None:
    policy = thopters.RetryPolicy(repeatable=True, wakes=True)
    assert policy.wait(BUSY, 60.0, 0.0) == policy.wait(STARTING, 60.0, 0.0) == 60.0
    assert [policy.wait(WAKING, None, 1.0) for _ in range(3)] == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(("took_s", "limit_s", "tries"), [(60, 120, 4), (5, 120, 5), (0, 3, 4)])
def test_the_time_that_the_tries_take_is_a_part_of_the_waking(
    took_s: float, limit_s: float, tries: int
) -> None:
    policy = thopters.RetryPolicy(repeatable=True, starting_limit_s=limit_s, wakes=True)
    waits = [policy.wait(WAKING, None, 0.0, took_s) for _ in range(tries)]
    assert None not in waits[:-1] and waits[-1] is None


def test_a_gateway_error_is_a_waking_sprite_only_where_the_request_wakes_one() -> None:
    errors = {status: make_answer(status) for status in (500, 502, 503, 504, 520)}
    for wakes, kind in ((True, WAKING), (False, AMBIGUOUS)):
        policy = thopters.RetryPolicy(repeatable=True, wakes=wakes)
        kinds = {status: policy.kind(answer) for status, answer in errors.items()}
        assert kinds == {500: AMBIGUOUS, 520: AMBIGUOUS, 502: kind, 503: kind, 504: kind}
        starting = make_answer(503, b'{"error": "sprite_starting"}')
        assert (policy.kind(starting), policy.kind(make_answer(404))) == (STARTING, None)


@pytest.mark.parametrize("seed", range(20))
def test_no_mixture_of_failures_waits_for_ever(seed: int) -> None:
    rng = random.Random(seed)
    policy = thopters.RetryPolicy(repeatable=rng.random() < 0.8)
    waits: dict[str, list[float]] = {kind: [] for kind in (NOT_SENT, BUSY, STARTING, AMBIGUOUS)}
    for _ in range(1500):
        kind = rng.choice(list(waits))
        asked = rng.choice((None, 0.0, rng.random(), 100 * rng.random(), float("inf")))
        wait = policy.wait(kind, asked, rng.random())
        if wait is not None:
            waits[kind].append(wait)
    quick = waits[NOT_SENT] + waits[AMBIGUOUS]
    assert len(quick) <= 3 and all(0.25 <= wait <= 2.0 for wait in quick)
    assert len(waits[BUSY]) <= 3 and all(0.0 <= wait <= 60.0 for wait in waits[BUSY])
    assert sum(waits[STARTING]) <= 120.0 and all(0.1 <= wait <= 60 for wait in waits[STARTING])
    assert policy.repeatable or not waits[AMBIGUOUS]


not_sent = thopters.NotSentError("no way")
no_answer = thopters.NoAnswerError("broke off")
Outcome = thopters.Answer | thopters.ThoptersError | str


def retry(
    outcomes: Sequence[Outcome], *, repeatable: bool = True, jitter: float = 0.0
) -> tuple[thopters.Answer | thopters.ThoptersError | str, list[float], int]:
    """Return how a request with these outcomes ends, what was slept, and the tries it took."""
    clock, left = FakeClock(jitter), list(outcomes)

    def attempt() -> thopters.Answer | str:
        outcome = left.pop(0)
        if isinstance(outcome, thopters.ThoptersError):
            raise outcome
        return outcome

    policy = thopters.RetryPolicy(repeatable=repeatable)
    end: Outcome
    try:
        end = make_transport(clock).retry(policy, attempt)
    except thopters.ThoptersError as error:
        end = error
    return end, clock.slept, len(outcomes) - len(left)


@pytest.mark.parametrize(
    ("outcomes", "repeatable", "slept"),
    [
        (["open"], False, []),
        ([not_sent, "open"], False, [0.25]),
        ([not_sent, not_sent, not_sent, "open"], False, [0.25, 0.5, 1.0]),
        ([not_sent, no_answer, make_answer(500), "open"], True, [0.25, 0.5, 1.0]),
        ([not_sent] * 4, True, [0.25, 0.5, 1.0]),
        ([thopters.NotSentError("untrusted", final=True)], True, []),
        ([no_answer], False, []),
        ([no_answer] * 4, True, [0.25, 0.5, 1.0]),
        ([make_answer(500)], False, []),
        ([make_answer(429, Retry_After="7"), make_answer(200)], False, [7.0]),
        ([make_answer(429, Retry_After="61")], True, []),
        ([make_answer(429)] * 4, False, [60.0] * 3),
        ([make_answer(429, b'{"error": "concurrent_sprite_limit_exceeded"}')], True, []),
        ([make_answer(503, b'{"error": "sprite_starting"}'), "open"], False, [1.0]),
        ([make_answer(301)], True, []),
    ],
)
def test_a_request_is_sent_again_where_that_is_safe(
    outcomes: list[Outcome], repeatable: bool, slept: list[float]
) -> None:
    assert retry(outcomes, repeatable=repeatable) == (outcomes[-1], slept, len(outcomes))


def test_who_watches_is_told_that_the_api_asks_to_wait_while_it_does() -> None:
    clock = FakeClock()
    transport = make_transport(clock)
    console, told = transport.console, []
    console.activity = console.working("listing sprites")

    def attempt() -> thopters.Answer | str:
        assert console.activity
        told.append(console.activity.text)
        return outcomes.pop(0)

    def sleep(seconds: float) -> None:
        assert console.activity
        told.append(f"{console.activity.text}: {seconds:.1f}")

    clock.sleep = sleep  # type: ignore[method-assign]
    starting = make_answer(503, b'{"error": "sprite_starting"}')
    outcomes: list[thopters.Answer | str] = [starting, make_answer(429, Retry_After="7")]
    outcomes += [make_answer(500), "open"]
    transport.retry(thopters.RetryPolicy(repeatable=True), attempt)
    usual = "listing sprites"
    assert told == [
        *(usual, f"{usual}: 1.0", usual, "the API asks to wait 7 s: 7.0"),
        *(usual, f"{usual}: 0.2", usual),
    ]


def test_chance_only_shortens_a_wait() -> None:
    assert retry([not_sent] * 4, jitter=1.0)[1] == [0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("earlier", "uncertain"),
    [
        ([], False),
        ([not_sent], False),
        ([make_answer(429, Retry_After="1")], False),
        ([make_answer(503, b'{"error": "sprite_starting"}')], False),
        ([make_answer(502)], True),
        ([no_answer], True),
        ([no_answer, not_sent], True),
    ],
)
def test_an_answer_tells_whether_an_earlier_try_may_have_done_it(
    earlier: list[Outcome], uncertain: bool
) -> None:
    end, _, _ = retry([*earlier, make_answer(404)])
    assert isinstance(end, thopters.Answer)
    assert end.uncertain is uncertain


def test_a_room_of_the_module_uses_only_rooms_above_it() -> None:
    """But for `help`, which shows what the parser's room makes."""
    source = (ROOT / "thopters.py").read_text()
    banners = [n for n, line in enumerate(source.splitlines(), 1) if line.startswith("# --- ")]
    assert len(banners) > 15

    def room(line: int) -> int:
        return sum(banner <= line for banner in banners)

    homes: dict[str, int] = {}
    for node in ast.parse(source).body:
        stored = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and is_stored(n)]
        named = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else stored
        for name in named:
            homes.setdefault(name, room(node.lineno))
    tables = [symtable.symtable(source, "thopters.py", "exec")]
    for table in tables:
        tables += table.get_children()
        if table.get_type() == "function" and table.get_name() != "cmd_help":
            for symbol in table.get_symbols():
                if symbol.is_global() and symbol.is_referenced():
                    home = homes.get(symbol.get_name(), 0)
                    assert home <= room(table.get_lineno()), (table.get_name(), symbol.get_name())


def is_stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def test_a_line_of_progress_fits_into_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer one would leave a line behind each time that it is drawn."""
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((10, 24)))
    assert thopters.fitting("x" * 30) == "x" * 9
    assert thopters.fitting("x" * 9) == "x" * 9
    assert thopters.fitting("日本" * 9) == "日本日本"
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((0, 0)))
    assert thopters.fitting("x" * 30) == "x" * 30


# secrets


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        format,
        ascii,
        pprint.pformat,
        lambda secret: f"{secret} {secret!r} {secret!s} {secret:>40} {secret:d}",
        lambda secret: "%s %r" % (secret, secret),  # noqa: UP031 (one of the ways)
        lambda secret: "{} {!r} {:<30}".format(secret, secret, secret),  # noqa: UP032 (another)
        lambda secret: str([secret, {"token": secret}]),
        lambda secret: repr(thopters.Credential(secret, "a test")),
        lambda secret: "".join(traceback.format_exception(ValueError(secret))),
    ],
)
def test_a_secret_does_not_show_itself(show: Callable[[thopters.Secret], str]) -> None:
    secret = thopters.Secret(CANARY)
    text = show(secret)
    assert text
    assert CANARY not in text and "c4n" not in text
    assert secret.reveal() == CANARY


def test_a_secret_does_not_show_in_the_locals_of_a_traceback() -> None:
    def fail(secret: thopters.Secret) -> None:
        raise ValueError("no")

    try:
        fail(thopters.Secret(CANARY))
    except ValueError as error:
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
    text = "".join(told.format())
    assert "secret = Secret(****)" in text
    assert "c4n" not in text


@pytest.mark.parametrize(
    "leak",
    [
        *(lambda secret, n=n: pickle.dumps(secret, n) for n in range(pickle.HIGHEST_PROTOCOL + 1)),
        lambda secret: pickle.dumps(thopters.Credential(secret, "a test")),
        copy.copy,
        copy.deepcopy,
        json.dumps,
        vars,
        "".join,
        lambda secret: "" + secret,
        bytes,
        list,
        len,
    ],
)
def test_a_secret_can_not_be_taken_for_its_value(leak: Callable[[thopters.Secret], object]) -> None:
    with pytest.raises(TypeError):
        leak(thopters.Secret(CANARY))


def test_secrets_are_not_compared_by_value() -> None:
    others: list[object] = [CANARY, thopters.Secret(CANARY)]
    assert thopters.Secret(CANARY) not in others


def test_the_value_of_a_secret_is_asked_for_in_four_places() -> None:
    """To make the header and init's input, to strike it out, to check a PAT before it is sent."""
    source = Path(thopters.__file__).read_text(encoding="utf-8")
    assert sorted(re.findall(r"(\S+)\.reveal\b", source)) == [
        "Credential(check_token(secret",
        "secret",
        "secret_forms(secret",
        "self.credential.token",
    ]


def random_tokens() -> list[str]:
    """Return tokens of every character that one may hold, and the usual kind."""
    rng = random.Random(1)
    every = [chr(code) for code in range(0x21, 0x7F)]
    made = ["".join(rng.choices(every, k=rng.randrange(8, 60))) for _ in range(60)]
    known = [
        "acme/1/tok/0123456789abcdef",
        "".join(every),
        "'\"\\'\"\\'\"\\",
        "two words é+",
        'a"quoted" é',
    ]
    return [CANARY, *known, *made]


def percent(token: str) -> str:
    plain = set(b"-._~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return "".join(chr(byte) if byte in plain else f"%{byte:02X}" for byte in token.encode())


ENCODINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "url": percent,
    "url, as git has it": lambda token: re.sub("%..", lambda code: code[0].lower(), percent(token)),
    "url of a form": lambda token: percent(token).replace("%20", "+"),
    "json": lambda token: json.dumps(token)[1:-1],
    "json, not in ASCII": lambda token: json.dumps(token, ensure_ascii=False)[1:-1],
    "shell": shlex.quote,
    "shell, ours": lambda token: thopters.quote_argument(token.encode()).decode(),
    "hex": lambda token: token.encode().hex(),
    "HEX": lambda token: token.encode().hex().upper(),
}


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS.keys())
def test_a_secret_is_struck_out_in_its_usual_encodings(encode: Callable[[str], str]) -> None:
    for token in random_tokens():
        redact = thopters.Redactor()
        redact.add(thopters.Secret(token))
        form = encode(token)
        left = redact(form).replace("'****'", "****")  # a shell's quotes around it may stay
        assert left == "****"
        text = f"é <{form}>\n{form}, and {form}"
        assert redact(text).replace("'****'", "****") == "é <****>\n****, and ****"


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_secret_is_struck_out_of_base64_whatever_surrounds_it(
    encode: Callable[[bytes], bytes],
) -> None:
    rng = random.Random(1)
    for token in random_tokens():
        redact = thopters.Redactor()
        redact.add(thopters.Secret(token))
        for before, after in itertools.product(range(6), range(4)):
            data = rng.randbytes(before) + token.encode() + rng.randbytes(after)
            text = encode(data).decode()
            # the characters all of whose six bits are the token's
            start, end = -(-8 * before // 6), 8 * (before + len(token.encode())) // 6
            assert redact(text) == text[:start] + "****" + text[end:]


def test_every_known_secret_is_struck_out_the_longest_first() -> None:
    redact = thopters.Redactor()
    for token in ("tok-123456", "another-one", "tok-123456-and-more"):
        redact.add(thopters.Secret(token))
        assert redact(token) == "****"
    text = "tok-123456, tok-123456-and-more, another-one, tok-12345"
    assert redact(text) == "****, ****, ****, tok-12345"


@pytest.mark.parametrize("value", ["", "a", ".", "to", " ", "took "])
def test_a_short_secret_does_not_wreck_the_text(value: str) -> None:
    redact = thopters.Redactor()
    redact.add(thopters.Secret(value))
    text = "a tornado took 2 tokens to a 616263 .... YWJj"
    assert redact(text) == text
    redact.add(thopters.Secret("tokens"))  # six characters are few, but enough
    assert redact(text) == text.replace("tokens", "****")


@pytest.mark.parametrize("seed", range(10))
def test_many_secrets_are_struck_out_as_by_one_pattern_of_all_forms(seed: int) -> None:
    rng = random.Random(seed)
    values = ["".join(rng.choices("ab+/=é", k=rng.randrange(6, 40))) for _ in range(20)]
    values += [value[rng.randrange(3) :] + "ab" for value in values]
    redact = thopters.Redactor()
    for value in values:
        redact.add(thopters.Secret(value))
    forms = [form for value in values for form in thopters.secret_forms(value)]
    pattern = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
    for _ in range(50):
        text = "".join(rng.choice([*rng.sample(forms, 3), "ab", "é", " "]) for _ in range(8))
        assert redact(text) == re.sub(pattern, "****", text)


def test_a_secret_that_is_added_twice_stays_one() -> None:
    redact = thopters.Redactor()  # as by a configuration that is saved, and read again
    for _ in range(2):
        redact.add(thopters.Secret("tok-123456"))
    assert redact("tok-123456") == "****"


def test_a_secret_that_yields_is_shown_where_a_sprites_name_has_it() -> None:
    redact = thopters.Redactor()
    redact.add(thopters.Secret("tok-dev-1"))
    for value in ("dev-box", "production", "dev-box"):
        redact.add(thopters.Secret(value), yields=True)
    text = "my-dev-box in production: tok-dev-1"
    assert redact(text) == "my-**** in ****: ****"
    for name in ("my-dev-box", "tok-dev-1", "my-dev-box", "the-production"):
        redact.spare(name)
    assert redact(text) == "my-dev-box in production: ****"


def test_a_line_of_a_secret_is_struck_out_from_eight_characters_on() -> None:
    redact = thopters.Redactor()
    redact.add(thopters.Secret("-----BEGIN\nnine-long\neight-ch\nseven-c\n"))
    text = "-----BEGIN nine-long eight-ch seven-c"
    assert redact(text) == "**** **** **** seven-c"


def test_a_secret_is_no_pattern() -> None:
    redact = thopters.Redactor()
    redact.add(thopters.Secret("a.*b|c$^["))
    assert redact("axxb c a.*b|c$^[") == "axxb c ****"


@pytest.mark.parametrize(
    "say",
    [
        lambda console: console.answer(CANARY),
        lambda console: console.answer_json({"a": [CANARY]}),
        lambda console: console.note(CANARY),
        lambda console: console.warn(CANARY),
        lambda console: console.hint(CANARY),
        lambda console: console.detail(CANARY),
        lambda console: console.trace(CANARY),
        lambda console: console.error(thopters.ThoptersError(CANARY, hint=CANARY)),
        lambda console: console.table(("A", "B"), [(CANARY, "b")]),
    ],
)
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
@pytest.mark.parametrize("as_json", [False, True])
def test_whatever_the_program_says_holds_no_secret(
    say: Callable[[thopters.Console], None], stream: type[io.StringIO], as_json: bool
) -> None:
    console = thopters.Console(stream(), stream(), {})
    console.debug, console.json = True, as_json
    console.redact.add(thopters.Secret(CANARY))
    say(console)
    assert isinstance(console.out, io.StringIO) and isinstance(console.err, io.StringIO)
    text = console.out.getvalue() + console.err.getvalue()
    assert "****" in text
    assert "c4n" not in text


# proxies


@pytest.mark.parametrize(
    ("rules", "host", "matches"),
    [
        ("*", "api.example", True),
        ("example", "api.example", True),
        (".example", "api.example", True),
        ("*.example", "api.example", True),
        ("api.example", "api.example", True),
        (".api.example", "api.example", True),
        ("EXAMPLE", "api.example", True),
        ("other, example", "api.example", True),
        ("other,example", "api.example", True),
        ("other example", "api.example", True),
        ("  ,, example ,", "api.example", True),
        ("example:443", "api.example", True),
        ("api.example:443", "api.example", True),
        (".example:443", "api.example", True),
        ("*.example:443", "api.example", True),
        ("example:80", "api.example", False),
        ("api.example:4430", "api.example", False),
        ("", "api.example", False),
        (",", "api.example", False),
        (" , ", "api.example", False),
        (".", "api.example", False),
        ("*.", "api.example", False),
        (". *.", "api.example.", False),
        (":443", "api.example", False),
        ("ample", "api.example", False),
        ("pi.example", "api.example", False),
        ("www.api.example", "api.example", False),
        ("example.com", "api.example", False),
        ("api", "api.example", False),
        ("10.0.0.0/8", "api.example", False),
        ("/8", "api.example", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:443", "10.1.2.3", True),
        ("10.1.2.3:80", "10.1.2.3", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.1.2.99/24", "10.1.2.3", True),
        ("10.0.0.0/255.0.0.0", "10.1.2.3", True),
        ("nonsense/99, 10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/99", "10.1.2.3", False),
        ("11.0.0.0/8", "10.1.2.3", False),
        ("0.0.0.0/0", "10.1.2.3", True),
        ("10.1.2.30", "10.1.2.3", False),
        ("::/0", "10.1.2.3", False),
        ("2001:db8::1", "2001:db8::1", True),
        ("[2001:db8::1]", "2001:db8::1", True),
        ("2001:DB8:0::1", "2001:db8::1", True),
        ("2001:db8::/32", "2001:db8::1", True),
        ("2001:db9::/32", "2001:db8::1", False),
        ("0.0.0.0/0", "2001:db8::1", False),
    ],
)
def test_no_proxy(rules: str, host: str, matches: bool) -> None:
    assert thopters.no_proxy_matches(host, 443, rules) is matches


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://one:3128"}, ("one", 3128)),
        ({"https_proxy": "http://one:3128/"}, ("one", 3128)),
        ({"ALL_PROXY": "http://all:1"}, ("all", 1)),
        ({"ALL_PROXY": "http://all:1", "HTTPS_PROXY": "http://one:3128"}, ("one", 3128)),
        ({"HTTP_PROXY": "http://plain:1"}, None),
        ({"HTTPS_PROXY": ""}, None),
        ({"HTTPS_PROXY": "http://one"}, ("one", 80)),
        ({"HTTPS_PROXY": "one:3128"}, ("one", 3128)),
        ({"HTTPS_PROXY": "http://[2001:db8::7]:3128"}, ("2001:db8::7", 3128)),
        ({"HTTPS_PROXY": "http://one:3128", "NO_PROXY": "other"}, ("one", 3128)),
        ({"HTTPS_PROXY": "http://one:3128", "NO_PROXY": "api.example:80"}, ("one", 3128)),
        ({"HTTPS_PROXY": "http://one:3128", "NO_PROXY": "other, .example:443"}, None),
        ({"HTTPS_PROXY": "http://one:3128", "no_proxy": "*"}, None),
        ({"ALL_PROXY": "http://all:1", "NO_PROXY": "example"}, None),
    ],
)
def test_which_proxy_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], proxy: tuple[str, int] | None
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found = thopters.find_proxy("api.example", 443)
    assert (found and (found.host, found.port)) == proxy
    assert not found or found.headers == {}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_this_machine_is_reached_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://one:3128")
    assert thopters.find_proxy(host, 443) is None


def test_the_systems_own_exceptions_are_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://one:3128")
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: host == "api.example")
    assert thopters.find_proxy("api.example", 443) is None
    assert thopters.find_proxy("other.example", 443) is not None


@pytest.mark.parametrize(
    ("userinfo", "pair"),
    [
        ("user:word", b"user:word"),
        ("user", b"user:"),
        ("us%40er:w%3Ao%2Frd", b"us@er:w:o/rd"),
        ("%C3%A9:%C3%A9", "é:é".encode()),
        (":word", b":word"),
        ("%FF:%ff\udcff", b"\xff:\xff\xff"),
    ],
)
def test_a_proxys_credentials_are_in_its_header_alone(userinfo: str, pair: bytes) -> None:
    proxy = thopters.Proxy(f"http://{userinfo}@one:3128")
    assert (proxy.host, proxy.port) == ("one", 3128)
    assert list(proxy.headers) == ["Proxy-Authorization"]
    kind, _, encoded = proxy.headers["Proxy-Authorization"].partition(" ")
    assert (kind, base64.b64decode(encoded, validate=True)) == ("Basic", pair)


@pytest.mark.parametrize(
    "url", ["https://u:c4n@one", "socks5://u:c4n@one:1", "http://", "http://:1"]
)
def test_a_proxy_of_another_kind_is_an_error_for_good(url: str) -> None:
    with pytest.raises(thopters.NotSentError) as caught:
        thopters.Proxy(url)
    assert caught.value.final
    assert "HTTPS_PROXY" in str(caught.value.hint)
    assert "c4n" not in f"{caught.value}{caught.value.hint}"


# texts and times


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("plain text\\n ~", "plain text\\n ~"),
        ("é 日本 \N{GRINNING FACE} e\u0301 \xa0", "é 日本 \N{GRINNING FACE} e\u0301 \xa0"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("a\nb\r\tc\0\x7f\b", "a\\nb\\r\\tc\\x00\\x7f\\x08"),
        ("é\x9b31m", "é\\x9b31m"),
        ("a\u202eb\u2066c\u200ed", "a\\u202eb\\u2066c\\u200ed"),
        ("a\u200bb\u200dc\ufeff\xad", "a\\u200bb\\u200dc\\ufeff\\xad"),
        ("a\u2028b\u2029", "a\\u2028b\\u2029"),
        ("\ue000\U000f0000", "\\ue000\\U000f0000"),
        ("\ud800\udcff", "\\ud800\\udcff"),
        ("\u0378\ufdd0", "\\u0378\\ufdd0"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_remote_text_is_made_harmless(text: str, shown: str) -> None:
    assert thopters.clean(text) == shown


def test_clean_text_is_printable_whatever_came() -> None:
    rng = random.Random(1)
    for _ in range(500):
        top = rng.choice((0x80, 0x100, 0x3000, 0x110000))
        text = "".join(chr(rng.randrange(top)) for _ in range(40))
        shown = thopters.clean(text)
        bad = [char for char in shown if unicodedata.category(char)[0] == "C"]
        assert not bad and len(shown.splitlines()) <= 1
        assert thopters.clean(shown) == shown
        shown.encode()


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("", 0),
        ("plain", 5),
        ("é", 1),
        ("e\u0301x\u20dd", 2),
        ("日本", 4),
        ("Ａｂ", 4),
        ("ｱ", 1),
        ("\N{GRINNING FACE}", 2),
        ("한", 2),
        ("─", 1),
    ],
)
def test_how_wide_a_text_is_on_a_terminal(text: str, width: int) -> None:
    assert thopters.display_width(text) == width


def utc(*parts: int) -> datetime.datetime:
    return datetime.datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01T12:00:00Z", NOW),
        ("2026-03-01T14:30:00+02:30", NOW),
        ("2026-03-01T07:00:00-05:00", NOW),
        ("2026-03-01T12:00:00", NOW),
        ("2026-03-01 12:00:00Z", NOW),
        ("2026-03-01T12:00:00.5Z", utc(2026, 3, 1, 12, 0, 0, 500000)),
        ("2026-03-01T12:00:00.123456789Z", utc(2026, 3, 1, 12, 0, 0, 123456)),
        ("0001-01-01T00:00:00Z", utc(1, 1, 1)),
        ("9999-12-31T23:59:59Z", utc(9999, 12, 31, 23, 59, 59)),
        ("2024-02-29T00:00:00Z", utc(2024, 2, 29)),
        ("2026-02-29T00:00:00Z", None),
        ("2016-12-31T23:59:60Z", None),
        ("2026-13-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+01:00", None),
        ("9999-12-31T23:59:59-01:00", None),
        ("yesterday", None),
        ("", None),
        ("\ud800", None),
        (b"2026-03-01T12:00:00Z", None),
        (1772366400, None),
        (True, None),
        (None, None),
        ([], None),
    ],
)
def test_stamps_of_the_api(text: object, moment: datetime.datetime | None) -> None:
    parsed = thopters.parse_time(text)
    assert parsed == moment
    assert parsed is None or parsed.utcoffset() == datetime.timedelta(0)


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the system has no tzset")
def test_a_stamp_without_a_zone_is_utc_wherever_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XYZ-9")
    time.tzset()
    try:
        assert thopters.parse_time("2026-03-01T12:00:00") == NOW
        assert thopters.parse_http_date("Sun Nov  6 08:49:37 1994") == utc(1994, 11, 6, 8, 49, 37)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("moment", "never", "shown"),
    [
        (utc(1, 1, 1), True, "never"),
        (utc(1, 12, 31, 23, 59, 59), True, "never"),
        (utc(1970, 1, 1), False, "1970-01-01T00:00:00Z"),
        (utc(2026, 3, 1, 12, 0, 9, 999999), False, "2026-03-01T12:00:09Z"),
    ],
)
def test_a_time_as_it_is_shown(moment: datetime.datetime, never: bool, shown: str) -> None:
    assert thopters.is_never(moment) is never
    assert not thopters.is_never(utc(2, 1, 1))
    assert thopters.format_time(moment) == shown


MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.mark.parametrize(
    ("seconds", "age"),
    [
        (-120.9, "just now"),
        (-1, "just now"),
        (0, "just now"),
        (9.9, "just now"),
        (10, "10 seconds ago"),
        (59.9, "59 seconds ago"),
        (MINUTE, "1 minute ago"),
        (2 * MINUTE - 1, "1 minute ago"),
        (2 * MINUTE, "2 minutes ago"),
        (HOUR - 1, "59 minutes ago"),
        (HOUR, "1 hour ago"),
        (DAY - 1, "23 hours ago"),
        (DAY, "1 day ago"),
        (30 * DAY - 1, "29 days ago"),
        (30 * DAY, "1 month ago"),
        (365 * DAY - 1, "12 months ago"),
        (365 * DAY, "1 year ago"),
        (1000 * DAY, "2 years ago"),
        (-121, "2026-03-01T12:02:01Z"),
        (-400 * DAY, "2027-04-05T12:00:00Z"),
    ],
)
def test_ages(seconds: float, age: str) -> None:
    assert thopters.format_age(NOW - datetime.timedelta(seconds=seconds), NOW) == age


def test_no_time_and_never_have_no_age() -> None:
    assert thopters.format_time(None) == thopters.format_age(None, NOW) == "-"
    assert thopters.format_age(utc(1, 1, 1), NOW) == "never"


# lists in pages


class Pages(thopters.Transport):
    """Answers every request with the next of the pages it is given."""

    def __init__(self, pages: Iterable[object]) -> None:
        real = make_transport(FakeClock())
        super().__init__(
            "https://api.example",
            real.credential,
            console=real.console,
            clock=real.clock,
            environ={},
        )
        self.pages = iter(pages)
        self.queries: list[dict[str, str]] = []

    def fetch(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        document: object = None,
        limit_s: float = 0.0,
        wakes: bool = False,
    ) -> thopters.Answer:
        assert (method, path, document) == ("GET", "/v1/sprites", None)
        self.queries.append(dict(query))
        return make_answer(200, json.dumps(next(self.pages)).encode())


def page(token: object, name: str = "a") -> dict[str, object]:
    return {"sprites": [{"name": name}], "has_more": True, "next_continuation_token": token}


def test_a_list_goes_on_with_the_token_of_the_page_before() -> None:
    pages = Pages([page("1", "a"), page("2", "c"), {"sprites": [{"name": "b"}]}])
    assert list(thopters.SpritesApi(pages).list_sprites("x").sprites) == ["a", "c", "b"]
    query = {"prefix": "x", "max_results": "50", "bulk_load": "true"}
    tokens = [{"continuation_token": token} for token in "12"]
    assert pages.queries == [query, query | tokens[0], query | tokens[1]]


@pytest.mark.parametrize(
    ("pages", "requests"),
    [
        ((page(str(number)) for number in itertools.count()), thopters.MAX_PAGES),
        (itertools.repeat(page("same")), 2),
        (map(page, itertools.cycle("123")), 4),
        (itertools.repeat(page("")), 1),
        (itertools.repeat(page(None)), 1),
        (itertools.repeat(page(5)), 1),
    ],
    ids=["new tokens", "one token", "three tokens", "no token", "null", "number"],
)
def test_a_list_that_does_not_end_is_given_up(pages: Iterable[object], requests: int) -> None:
    transport = Pages(pages)
    with pytest.raises(thopters.ThoptersError, match="does not end"):
        thopters.SpritesApi(transport).list_sprites("")
    assert len(transport.queries) == requests


@pytest.mark.parametrize("has_more", [False, None, "true", 1])
def test_only_a_true_has_more_goes_on(has_more: object) -> None:
    transport = Pages([page("1") | {"has_more": has_more}])
    assert list(thopters.SpritesApi(transport).list_sprites("").sprites) == ["a"]


@pytest.mark.parametrize(
    "document", [None, [], "x", 5, {}, {"sprites": {}}, {"sprites": "a"}, {"sprites": False}]
)
def test_a_list_without_a_list_is_no_empty_one(document: object) -> None:
    with pytest.raises(thopters.NoAnswerError):
        thopters.SpritesApi(Pages([document])).list_sprites("")


@pytest.mark.parametrize("document", [{"sprites": None}, {"sprites": []}])
def test_a_list_may_be_empty(document: object) -> None:
    assert thopters.SpritesApi(Pages([document])).list_sprites("").sprites == {}


@pytest.mark.parametrize(
    ("pages", "counts"),
    [
        ([{}], {}),
        ([{"running": 1, "running_limit": 3}], {"running": (1, 3)}),
        ([{"org": {"warm": 2, "warm_limit": None}}], {"warm": (2, None)}),
        ([{"cold": 1, "org": {"cold": 5}}], {"cold": (5, None)}),
        ([{"cold": 0, "cold_limit": "many"}], {"cold": (0, None)}),
        ([{"cold": 1}, {"cold": 2, "cold_limit": 9}], {"cold": (2, 9)}),
        ([{"cold": 1}, {}], {"cold": (1, None)}),
        ([{"running": True, "warm": "2", "cold": 1.0, "org": []}], {}),
    ],
)
def test_the_accounts_numbers(
    pages: list[dict[str, object]], counts: dict[str, tuple[int, int | None]]
) -> None:
    listing = thopters.Listing()
    for document in pages:
        listing.add({"sprites": None, **document})
    assert listing.counts == counts


@pytest.mark.parametrize("item", [None, 5, "a", [], {}, {"name": ""}, {"name": 5}], ids=repr)
def test_what_is_no_sprite_is_not_left_out_of_a_list(item: object) -> None:
    with pytest.raises(thopters.NoAnswerError, match="list of sprites holds"):
        thopters.SpritesApi(Pages([{"sprites": [{"name": "a"}, item]}])).list_sprites("")


# streams of events


@pytest.mark.parametrize("seed", range(10))
def test_lines_are_the_same_wherever_the_body_is_cut(seed: int) -> None:
    rng = random.Random(seed)
    body = bytes(rng.choices(b"ab\xc3\xa9 {}\r\n\n\n\0\x0b\x85", k=400))
    lines = [line.strip() for line in body.split(b"\n") if line.strip()]
    assert len(lines) > 10
    assert list(thopters.split_lines([body])) == lines
    assert list(thopters.split_lines(cut(body, range(1, len(body))))) == lines
    for count in (1, 2, 10, 100):
        pieces = cut(body, rng.choices(range(len(body) + 1), k=count))
        assert list(thopters.split_lines(pieces)) == lines


def test_a_line_comes_as_soon_as_it_is_whole() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"one\ntw"
        raise AssertionError("more was read than needed")

    assert next(thopters.split_lines(pieces())) == b"one"


@pytest.mark.parametrize("body", [b"", b"\n", b"\r\n \n\n", b" "])
def test_blank_lines_are_none(body: bytes) -> None:
    assert list(thopters.split_lines([body])) == []


def test_a_line_without_an_end_is_given_up() -> None:
    pieces = itertools.repeat(b"x" * 65536)
    with pytest.raises(thopters.NoAnswerError, match="longer than 1 MiB"):
        list(thopters.split_lines(pieces))
    longest = b"x" * thopters.MAX_LINE_BYTES
    assert list(thopters.split_lines([longest, b"\n", b"y"])) == [longest, b"y"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'"text"',
        b"true",
        b"<html>",
        b"{'a': 1}",
        b'{"a": 1} {"b": 2}',
        b'{"a": "\xff"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": ' * 100_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
    ids=lambda line: repr(line[:20]),
)
def test_a_line_that_is_no_event_is_an_error(line: bytes) -> None:
    with pytest.raises(thopters.NoAnswerError, match="can't be understood"):
        thopters.parse_event(line)


def test_an_event_is_a_json_object() -> None:
    assert thopters.parse_event(b'{"type": "info", "data": "\\u00e9"}') == {
        "type": "info",
        "data": "é",
    }


def test_a_line_of_single_bytes_takes_no_longer_than_it_is() -> None:
    def seconds(count: int) -> float:
        started = time.process_time()
        assert list(thopters.split_lines(itertools.repeat(b"x", count))) == [b"x" * count]
        return time.process_time() - started

    # eight times as many; if each copied the whole line, it would be sixty times as long
    assert min(seconds(400_000) for _ in range(3)) < 24 * min(seconds(50_000) for _ in range(3))


# connections


def test_a_family_that_the_system_lacks_keeps_none_from_being_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        lacking = (10_000, socket.SOCK_STREAM, 0, "", ("::1", 1, 0, 0))
        found = [lacking, (socket.AF_INET, socket.SOCK_STREAM, 0, "", address)]
        monkeypatch.setattr(thopters, "resolve", lambda *_: found)
        with thopters.Deadline(10.0, thopters.Clock()) as deadline:
            with thopters.connect_tcp("api.test", 443, deadline) as sock:
                assert sock.getpeername() == address
            found.pop()
            with pytest.raises(OSError, match="not supported"):
                thopters.connect_tcp("api.test", 443, deadline)


def test_what_a_local_side_sends_stays_behind_for_no_slow_reader_of_ours() -> None:
    """Whoever receives may wait for the local side to read, which waits for us to send."""
    size = 200_000
    ours, local = socket.socketpair()
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection = http.client.HTTPConnection("api.example")
    connection.sock = near
    websocket = thopters.WebSocket(connection, b"", thopters.Clock())
    sender = thopters.Sender(websocket, thopters.SocketInput(ours))
    with ours, local, near, far:
        far.settimeout(30.0)
        sending = threading.Thread(target=sender.run, daemon=True)
        sending.start()
        local.settimeout(30.0)
        feeder = threading.Thread(target=local.sendall, args=(bytes(size),))
        feeder.start()
        came = 0
        while came < size:  # as frames, so that there is a little more
            came += len(far.recv(1 << 16))
        feeder.join()
        local.shutdown(socket.SHUT_WR)
        sending.join(30.0)
        assert sender.ended and sender.sent == size


# deadlines


def test_what_is_left_of_a_deadline_goes_by_the_clock_and_stays_above_nothing() -> None:
    clock = FakeClock()
    deadline = thopters.Deadline(10.0, clock)
    left = []
    for seconds in (0.0, 4.0, 5.995, 1.0, 1e9):
        clock.now += seconds
        left.append(deadline.remaining())
    assert left == pytest.approx([10.0, 6.0, 0.01, 0.01, 0.01])
    assert not deadline.passed  # there was no connection to cut


def test_a_passed_deadline_ends_every_wait_on_its_connection() -> None:
    clock = FakeClock()
    ours, theirs = socket.socketpair()
    with ours, theirs, thopters.Deadline(10.0, clock) as deadline:
        clock.now += 10.0
        ours.settimeout(10.0)
        deadline.watch(ours)
        assert ours.recv(1) == b""  # nothing was sent, and nobody but the deadline closes it
        assert deadline.passed
        assert theirs.recv(1) == b""


def test_a_released_deadline_leaves_the_connection_alone() -> None:
    ours, theirs = socket.socketpair()
    other, end = socket.socketpair()
    with ours, theirs, other, end:
        with thopters.Deadline(3600.0, FakeClock()) as deadline:
            deadline.watch(ours)
            timer = deadline._timer
            deadline.watch(other)  # a second try's connection takes the first one's place
            assert timer is not None and timer.finished.is_set()
            assert timer is not deadline._timer
        assert deadline._timer is not None and deadline._timer.finished.is_set()
        for one, two in ((ours, theirs), (other, end)):
            one.sendall(b"x")
            assert two.recv(1) == b"x"
        assert not deadline.passed
        deadline._expire()  # a timer that was already under way
        ours.sendall(b"y")
        assert theirs.recv(1) == b"y"


# exit statuses, ids and names


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
    with pytest.raises(thopters.WebSocketLost, match="no status"):
        thopters.exit_status_of_text(b'{"type": "exit", "%s": %s}' % (name, code))
    with pytest.raises(thopters.WebSocketLost, match="no status"):
        thopters.exit_status_of_text(b'{"type": "exit"}')


@pytest.mark.parametrize(
    ("texts", "identity"),
    [
        (["  ID: v3"], "v3"),
        (["ID:v3\n"], "v3"),
        (["Checkpoint v3 created"], "v3"),
        (["Checkpoint v3 created successfully"], "v3"),
        (["Creating checkpoint...", "  ID: v12", "  Path: checkpoints/v12"], "v12"),
        (["Checkpoint v3 created", "ID: v4"], "v4"),
        (["ID: ../../etc", "ID: v5"], "v5"),
        (["ID: ../v1", "Checkpoint v3 created"], "v3"),
        (["ID: auto-2026.01_02"], "auto-2026.01_02"),
        (["ID: " + "v" * 64], "v" * 64),
        (["ID: " + "v" * 65], ""),
        (["ID: \x1b[1mv3"], ""),
        (["ID: -rf"], ""),
        (["UUID: v3"], ""),
        (["ID:"], ""),
        (["Checkpoint created"], ""),
        (["v3"], ""),
        ([""], ""),
        ([], ""),
    ],
)
def test_a_checkpoints_id_in_the_platforms_words(texts: list[str], identity: str) -> None:
    assert thopters.checkpoint_id(texts) == identity


@pytest.mark.parametrize(
    "name", ["a", "dev", "Dev_1.2", "0", "a" * 128, "x~y", "a@b+c:d=e,f", "...", "a-", "_"]
)
def test_names_that_a_sprite_can_have(name: str) -> None:
    assert thopters.valid_name(name) == name


@pytest.mark.parametrize("name", [*TWISTED, "a" * 129], ids=ascii)
def test_names_that_could_bend_a_path_are_refused(name: str) -> None:
    with pytest.raises(thopters.UsageError):
        thopters.valid_name(name)


@pytest.mark.parametrize("name", ["a", "0", "dev", "a-b", "a--b", "1-2", "ab", "a" * 63])
def test_names_for_a_new_sprite(name: str) -> None:
    assert thopters.valid_new_name(name) == name


@pytest.mark.parametrize(
    "name", [*TWISTED, "a-", "-", "A", "aB", "a_b", "a.b", "a" * 64, "a@b"], ids=ascii
)
def test_what_is_no_dns_label_is_no_name_for_a_new_sprite(name: str) -> None:
    with pytest.raises(thopters.UsageError):
        thopters.valid_new_name(name)


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        ("3", "v3"),
        ("v3", "v3"),
        ("checkpoints/v3", "v3"),
        ("checkpoints/12", "v12"),
        ("auto-2026.01_02", "auto-2026.01_02"),
        ("3a", "3a"),
        ("V3", "V3"),
        ("a" * 64, "a" * 64),
        ("current", "current"),
    ],
)
def test_a_checkpoints_id_in_its_one_form(text: str, identity: str) -> None:
    assert thopters.valid_checkpoint(text) == identity


@pytest.mark.parametrize(
    "text",
    [
        *TWISTED,
        "_a",
        ".a",
        "a@b",
        "a" * 65,
        "checkpoints/",
        "checkpoints/../v1",
        "checkpoints/checkpoints/v1",
        "v1/restore",
        "Current",
        "active",
        "checkpoints/Current",
        "checkpoints/active",
    ],
    ids=ascii,
)
def test_what_is_no_checkpoint_to_restore(text: str) -> None:
    with pytest.raises(thopters.UsageError):
        thopters.valid_checkpoint(text)


# what strange servers and settings must not do


@pytest.mark.parametrize(
    "url",
    [
        "http://user:se/cret@proxy:80",
        "http://proxy:99999",
        "http://proxy:abc",
        "http://[::1",
        "http://user:secret@pro xy:80",
        "http://user:secret@.proxy:80",
        "http://user:secret@" + "a" * 64 + ".proxy:80",
        "http://user:secret@пример:80",
    ],
)
def test_a_malformed_proxy_is_said_without_its_password(url: str) -> None:
    with pytest.raises(thopters.NotSentError) as caught:
        thopters.Proxy(url)
    assert caught.value.final
    assert "se" + "cret" not in caught.value.message + str(caught.value.hint)
    assert caught.value.message == "the proxy settings do not hold a URL"


@pytest.mark.parametrize("day", ["99999999999999999999", "06"])
def test_a_date_beyond_every_calendar_is_none(day: str) -> None:
    assert thopters.parse_http_date(f"Sun, {day} Nov 99999999999999999999 08:49:37 GMT") is None


def test_a_wish_beyond_every_number_is_only_a_long_one() -> None:
    body = b'{"retry_after_seconds": 1' + b"0" * 400 + b"}"
    assert make_answer(429, body).asked_wait() == 1e12


@pytest.mark.parametrize(("port", "match"), [(443, True), (444, False)])
def test_an_ipv6_address_with_a_port_needs_no_proxy(port: int, match: bool) -> None:
    assert thopters.no_proxy_matches("2001:db8::1", port, "[2001:db8::1]:443") is match


# other systems than the one that the tests run on


def test_macos_has_its_own_way_to_force_a_file_to_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[object] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda fd, command: calls.append(command))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync"))
    thopters.sync(0)
    assert calls == [51]

    def refuse(fd: int, command: int) -> NoReturn:
        raise OSError

    monkeypatch.setattr(fcntl, "fcntl", refuse)  # as a file system over the network does
    thopters.sync(0)
    assert calls == [51, "fsync"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_folder_that_is_not_for_the_disk_is_none_to_force_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    def refuse(fd: int) -> NoReturn:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", refuse)
    fails = pytest.raises(OSError, match="no") if number == errno.EIO else contextlib.nullcontext()
    with fails:
        thopters.sync_folder(str(tmp_path))


@pytest.mark.parametrize("knows_links", [True, False])
def test_a_private_file_is_opened_by_no_more_than_what_the_system_knows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, knows_links: bool
) -> None:
    calls: list[object] = []
    really = os.open

    def note(path: str, flags: int, mode: int) -> int:
        calls.append(flags)
        return really(path, flags, mode)

    expected = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    if not knows_links:
        monkeypatch.delattr(os, "O_NOFOLLOW")  # as on Windows
        expected = os.O_RDWR | os.O_CREAT
    monkeypatch.setattr(os, "open", note)
    os.close(thopters.open_private(str(tmp_path / "file"), os.O_RDWR | os.O_CREAT))
    assert calls == [expected]


def test_a_port_that_somebody_has_on_all_addresses_is_not_shared() -> None:
    with socket.create_server(("", 0)) as server, pytest.raises(OSError, match="in use"):
        thopters.see_unshared(socket.AF_INET, server.getsockname()[1])


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_hidden_answer_is_refused_where_the_terminal_cuts_it(
    monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    longest = {"linux": 4094, "darwin": 1022}[platform]
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(thopters, "EchoStaysOff", lambda *_: contextlib.nullcontext())
    for size in (longest, longest + 1):
        monkeypatch.setattr("getpass.getpass", lambda *_, size=size, **__: "x" * size)
        if size == longest:
            assert make_console().ask_secretly("key") == "x" * longest
        else:
            with pytest.raises(thopters.UsageError, match="too long for a line"):
                make_console().ask_secretly("key")


def test_no_help_is_coloured_by_python() -> None:
    """As it would be since 3.14, without a look at our settings."""
    parser: Any = thopters.build_parser(thopters.find_command("exec"))
    assert parser.color is False


def test_a_client_that_is_gone_before_its_port_is_open_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """macOS sets no option of a socket that has been reset."""
    closed = []

    class Opened:
        def close(self) -> None:
            closed.append(True)

    class Reset(socket.socket):
        def setsockopt(self, *args: Any) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(thopters, "open_port", lambda *_: Opened())
    forwarder = thopters.Forwarder.__new__(thopters.Forwarder)
    api: Any = None
    forwarder.api, forwarder.name = api, "dev"
    forwarder._forward(Reset(), 80)
    assert closed == [True]


def test_the_hint_of_a_lost_mark_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newer versions of argparse split words: -in, with -i known, becomes -i and -n."""

    def parse(*_: object) -> tuple[argparse.Namespace, list[str]]:
        return argparse.Namespace(name="dev", command=["grep"]), ["-n", "foo", "file"]

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    with pytest.raises(thopters.UsageError) as caught:
        thopters.parse(["exec", "dev", "grep", "-in", "foo", "file"])
    assert caught.value.hint == "thopters exec dev -- grep -in foo file"


@pytest.mark.parametrize(
    ("shown", "undone"),
    [
        (b"\x1b[>1u", b"\x1b[<1u\x1b[<1u"),
        (b"\x1b[>1u\x1b[>3u\x1b[<u", b"\x1b[<1u\x1b[<1u"),
        (b"\x1b[>1u\x1b[<9u", b""),
        (b"\x1b[=5u", b"\x1b[=0u"),
        (b"\x1b[=5;1u\x1b[=0u", b""),
        (b"\x1b[>4;2m", b"\x1b[>4m"),
        (b"\x1b[>4;2m\x1b[>4;0m", b""),
        (b"\x1b[>1u\x1b[?1049h", b"\x1b[<1u\x1b[?1049l\x1b[<1u"),
    ],
)
@pytest.mark.parametrize("cut", range(4))
def test_ways_of_sending_keys_are_undone(shown: bytes, undone: bytes, cut: int) -> None:
    modes = thopters.ShownModes()
    for piece in (shown[:cut], shown[cut:]):
        modes.take(piece)
    assert modes.undo() == (undone + b"\x1b>\x1b[m" if undone else b"")
    assert modes.undo() == b""
