"""R12, R13, R20: a command gets its words exactly, and its exit status is ours."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from emulation import Emulator
from support.program import Thopters
from support.relay import Cut, Relay
from support.runs import environ_for
from support.scripts import run_script
from support.sessions import refuse_websockets
from support.words import nasty_words

import thopters as program

SHOW = [b"printf", b"%s\\0"]


def word_lists(rng: random.Random, count: int) -> list[list[bytes]]:
    words = nasty_words(rng.randrange(1 << 30), 2000)[:-1]  # the last one is a long one
    return [rng.choices(words, k=rng.choice((1, 1, 2, 3, 8))) for _ in range(count)]


@pytest.mark.parametrize("in_hex", [False, True], ids=["websocket", "post"])
def test_r12_ten_thousand_lists_of_words_arrive_exactly(tmp_path: Path, in_hex: bool) -> None:
    lists = word_lists(random.Random(12 + in_hex), 10_000)
    for start in range(0, len(lists), 200):
        part = lists[start : start + 200]
        # as one command's words, each list behind its length
        words = [word for some in part for word in (b"%d" % len(some), *some)]
        assert run(tmp_path, [*SHOW, *words], in_hex=in_hex) == words
    for some in lists[::100]:
        assert run(tmp_path, [*SHOW, *some], in_hex=in_hex) == some
    assert list(tmp_path.iterdir()) == []  # nothing was run that was not meant


def run(home: Path, argv: list[bytes], *, in_hex: bool) -> list[bytes]:
    """Run a command as a sprite does, and return the words that it prints."""
    command = program.RemoteCommand(argv)
    done = run_script(home, command.stream_script(in_hex=in_hex) + b"\0")
    assert done.returncode == 0, done
    _, _, out = done.stdout.partition(b"\n")
    if in_hex:
        stream = program.HexDecoder()
        out = b"".join(stream.take(out)) + stream.end()
    return out.removesuffix(command.mark + b"0\n").split(b"\0")[:-1]


def test_r12_words_arrive_exactly_through_the_whole_program(
    thopters: Thopters, emulator: Emulator
) -> None:
    sprite = emulator.add_sprite("dev", status="running")
    before = {path.name for path in sprite.home.iterdir()}
    for some in word_lists(random.Random(os.urandom(8)), 5):
        done = thopters("exec", "dev", "--", *SHOW, *some)
        assert (done.code, done.out_bytes.split(b"\0")[:-1]) == (0, some), some
    assert {path.name for path in sprite.home.iterdir()} == before


SIGNALS = ("INT", "TERM", "HUP", "KILL", "SEGV")


@pytest.fixture
def ask(emulator: Emulator, tmp_path: Path) -> Iterator[Callable[..., tuple[int, bytes, bytes]]]:
    """Return what runs a command in this process, over a WebSocket or by POST."""
    emulator.add_sprite("dev", status="running")
    emulator.personality.hold_after_exit_s = 0.0
    environ = environ_for(emulator, str(tmp_path))
    console = program.Console(io.StringIO(), io.StringIO(), environ)
    api = program.App(console, environ, program.Clock()).api

    def run(*argv: str | bytes, by_post: bool) -> tuple[int, bytes, bytes]:
        api.websockets_refused = by_post
        words = [os.fsencode(word) for word in argv]
        return program.run_script(
            api.sprite("dev"), b'exec "$@"', *words, limit_s=60, statuses=range(256)
        )

    yield run


Ask = Callable[..., tuple[int, bytes, bytes]]


@pytest.mark.slow
@pytest.mark.parametrize("by_post", [False, True], ids=["websocket", "post"])
def test_r12_ten_thousand_lists_of_words_arrive_exactly_each_by_itself(
    ask: Ask, emulator: Emulator, by_post: bool
) -> None:
    home = emulator.sprite("dev").home
    before = {path.name for path in home.iterdir()}
    for some in word_lists(random.Random(os.urandom(8)), 10_000):
        status, out, err = ask(*SHOW, *some, by_post=by_post)
        assert (status, out.split(b"\0")[:-1], err) == (0, some, b""), some
        assert [kind for _, _, kind in emulator.journal.executed] == ["post" if by_post else "ws"]
        emulator.journal.clear()  # it would keep what each was given
    assert {path.name for path in home.iterdir()} == before  # nothing else was run


def check_statuses(ask: Ask, emulator: Emulator, codes: range, *, by_post: bool) -> None:
    for code in codes:
        assert ask("sh", "-c", f"exit {code}", by_post=by_post) == (code, b"", b"")
    for name in SIGNALS:
        status, out, err = ask("sh", "-c", f"kill -{name} $$", by_post=by_post)
        assert (status, out, err) == (128 + signal.Signals["SIG" + name], b"", b""), name
    ran = [kind for _, _, kind in emulator.journal.executed]
    assert ran == ["post" if by_post else "ws"] * (len(codes) + len(SIGNALS))


@pytest.mark.parametrize("by_post", [False, True], ids=["websocket", "post"])
def test_r13_statuses_and_signals_are_exact(ask: Ask, emulator: Emulator, by_post: bool) -> None:
    check_statuses(ask, emulator, range(0, 256, 5 if by_post else 1), by_post=by_post)


@pytest.mark.slow
def test_r13_every_status_by_post_is_exact(ask: Ask, emulator: Emulator) -> None:
    check_statuses(ask, emulator, range(256), by_post=True)


@pytest.mark.parametrize("by_post", [False, True], ids=["websocket", "post"])
@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 127", 127),
        ("exit 255", 255),
        *((f"kill -{name} $$", 128 + signal.Signals["SIG" + name]) for name in SIGNALS),
    ],
)
def test_r13_statuses_through_the_whole_program(
    thopters: Thopters, emulator: Emulator, script: str, status: int, by_post: bool
) -> None:
    emulator.add_sprite("dev", status="running")
    if by_post:
        refuse_websockets(emulator)
    done = thopters("exec", "dev", "--", "sh", "-c", script)
    assert (done.code, done.out, done.err) == (status, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("by_post", [False, True], ids=["websocket", "post"])
def test_r13_every_status_through_the_whole_program(
    thopters: Thopters, emulator: Emulator, by_post: bool
) -> None:
    emulator.add_sprite("dev", status="running")
    if by_post:
        refuse_websockets(emulator)
    for code in range(256):
        done = thopters("exec", "dev", "--", "sh", "-c", f"exit {code}")
        assert (done.code, done.out, done.err) == (code, "", "")
    ran = [kind for _, _, kind in emulator.journal.executed]
    assert ran == ["post" if by_post else "ws"] * 256


@pytest.mark.parametrize("by_post", [False, True], ids=["websocket", "post"])
def test_r13_255_of_ours_comes_with_a_message(
    thopters: Thopters, emulator: Emulator, by_post: bool
) -> None:
    emulator.add_sprite("dev", status="running")
    if by_post:
        refuse_websockets(emulator)
    with Relay(int(emulator.url.rpartition(":")[2])) as relay:
        relay.arm(Cut(connection=int(by_post), size=220))
        done = thopters("exec", "dev", "--", "true", env={"SPRITES_API_URL": relay.url})
        assert relay.connections[int(by_post)].was_cut.is_set()
    assert (done.code, done.out) == (255, "")
    assert "thopters: error: " in done.err
    assert "was not run again" in done.err
    assert len(emulator.journal.executed) == 1


def loop(thopters: Thopters, emulator: Emulator, count: int) -> None:
    """Run `count` commands in a loop that reads lines, which none of them may take away."""
    sprite = emulator.add_sprite("dev", status="running")
    command = " ".join(thopters.argv)
    script = f'while read -r line; do {command} exec dev -- sh -c "echo $line; cat"; done'
    lines = "".join(f"line-{number}\n" for number in range(count)).encode()
    done = subprocess.run(
        ["bash", "-c", script], input=lines, env=thopters.env, capture_output=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, lines, b"")
    assert len(emulator.journal.executed) == count
    assert all(b"line-" not in r.stdin.partition(b"\0")[2] for r in emulator.journal)
    assert len(sprite.sessions) == count


def test_r20_a_loop_over_lines_runs_every_one(thopters: Thopters, emulator: Emulator) -> None:
    loop(thopters, emulator, 20)


@pytest.mark.slow
def test_r20_a_loop_over_a_hundred_lines(thopters: Thopters, emulator: Emulator) -> None:
    loop(thopters, emulator, 100)
