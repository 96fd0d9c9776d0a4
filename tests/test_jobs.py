"""Detached commands and their records: what is kept of them, `logs`, `wait`, `sessions --all`.

The commands are real ones, on the emulated platform. Where a test says that a sprite sleeps, its
processes stop, and its journal shows what was asked of it meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulation import Emulator, Fault
from emulation.exec import Session
from emulation.machine import namespace_kind
from emulation.state import Sprite
from support.keys import CONFIG
from support.program import Result, Thopters
from support.relay import Cut, Relay
from support.runs import shorten
from support.sessions import detach, leave_running, needs_curl, needs_namespace, session_of, window
from support.terminals import CTRL_C, LEAVE, Tty, open_shell
from support.waiting import until

import thopters as program

UNTIL_GO = "until [ -e go ]; do sleep 0.05; done"


def record(sprite: Sprite, identity: str) -> Path:
    return sprite.home / ".thopters/jobs" / identity


def status_of(sprite: Sprite, identity: str) -> str:
    return (record(sprite, identity) / "status").read_text().split()[0]


def process_of(sprite: Sprite, identity: str) -> tuple[int, int]:
    """Return the numbers of a job's two shells."""
    fields = (record(sprite, identity) / "process").read_text().split()
    return int(fields[1]), int(fields[4])


def listed(thopters: Thopters, *words: str) -> list[dict[str, object]]:
    done = thopters("sessions", "dev", "--json", *words)
    assert done.code == 0, done
    sessions: list[dict[str, object]] = json.loads(done.out)["sessions"]
    return sessions


def let_go(sprite: Sprite, identity: str) -> None:
    (sprite.home / "go").touch()
    until(lambda: status_of(sprite, identity) != "-", "it has ended")


# how it ends


def statuses(thopters: Thopters, sprite: Sprite, scripts: dict[str, int]) -> None:
    """Start all of them, let them end, and ask each for its status."""
    jobs = {
        detach(thopters, "sh", "-c", f"{UNTIL_GO}; {how}"): code for how, code in scripts.items()
    }
    (sprite.home / "go").touch()
    for identity, code in jobs.items():
        done = thopters("wait", "dev", identity)
        assert (done.code, done.out) == (code, ""), done
        assert done.err.splitlines()[-1] == f"{identity} of dev has ended with status {code}"
    told = {item["id"]: (item["state"], item["status"]) for item in listed(thopters, "--all")}
    assert told == {identity: ("ended", code) for identity, code in jobs.items()}


def test_a_status_is_kept(thopters: Thopters, sprite: Sprite) -> None:
    ends = {"exit 0": 0, "exit 3": 3, "exit 7": 7, "exit 255": 255, "exec nosuchprogram": 127}
    statuses(thopters, sprite, ends | {"kill -TERM $$": 143, "kill -KILL $$": 137})


@pytest.mark.slow
def test_every_status_is_kept(thopters: Thopters, sprite: Sprite) -> None:
    codes = list(range(256))
    for start in range(0, 256, 32):
        shutil.rmtree(sprite.home / ".thopters/jobs", ignore_errors=True)
        (sprite.home / "go").unlink(missing_ok=True)
        statuses(thopters, sprite, {f"exit {code}": code for code in codes[start : start + 32]})
    (sprite.home / "go").unlink()
    shutil.rmtree(sprite.home / ".thopters/jobs")
    numbers = ("HUP", "INT", "QUIT", "ABRT", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM")
    kills = {f"kill -{name} $$": 128 + signal.Signals[f"SIG{name}"] for name in numbers}
    statuses(thopters, sprite, kills)


def test_sessions_tells_what_has_ended_and_what_was_lost(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    """By a cold boot in the middle, and by a restore; a checkpoint holds the records of its day."""
    emulator.personality.restore_delay_s = 0.05
    first = detach(thopters, "sleep", "600", options=("--name", "first"))
    assert thopters("checkpoint", "dev").code == 0
    second = detach(thopters, "sleep", "601")
    sprite.pause(cold=True)
    done = thopters("wait", "dev", second)
    assert done.code == 255
    lost = "was lost: its machine was stopped under it, so nobody knows its status"
    assert done.err.splitlines()[-1] == f"{second} of dev {lost}"
    assert thopters("sessions", "dev").out == ""
    rows = [line.split("\t") for line in thopters("sessions", "dev", "--all").out.splitlines()]
    assert [(row[0], row[1], row[5]) for row in rows] == [
        (second, "sleep 601", "lost"),
        (first, "sleep 600", "lost"),
    ]
    third = detach(thopters, "sleep", "602")
    assert thopters("restore", "dev", "v1", "--yes", "--no-backup").code == 0
    [item] = listed(thopters, "--all")
    assert (item["id"], item["label"], item["state"]) == (first, "first", "lost")
    assert thopters("logs", "dev", third).code == 3
    done = thopters("attach", "dev", "first")
    assert (done.code, done.out) == (3, "")
    assert f"error: {first} of dev {lost}\n" in done.err


def program_of(pid: int) -> str:
    """Return the name of what a process runs, "" where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def test_who_kills_the_recorder_does_not_change_how_it_ended(
    thopters: Thopters, sprite: Sprite
) -> None:
    identity = detach(thopters, "sh", "-c", f"trap '' HUP; echo before; {UNTIL_GO}; exit 5")

    [script] = [pid for pid in sprite.machine.processes() if program_of(pid) == "script"]
    os.kill(script, signal.SIGKILL)
    until(session_of(sprite, identity).ended.is_set, "its session has ended")
    [item] = listed(thopters)
    assert (item["id"], item["state"], item["session"]) == (identity, "running", None)
    let_go(sprite, identity)
    assert thopters("wait", "dev", identity).code == 5
    done = thopters("logs", "dev", identity)
    assert (done.code, done.out) == (0, "before\r\n")
    assert f"this is not all that {identity} printed: what records it was ended" in done.err


def test_one_that_only_a_kill_ends_has_the_status_of_that(
    thopters: Thopters, sprite: Sprite
) -> None:
    identity = detach(thopters, "sh", "-c", "sleep 600")
    _, inner = process_of(sprite, identity)
    os.killpg(inner, signal.SIGKILL)  # with the shell that would write it down
    until(lambda: status_of(sprite, identity) != "-", "it is written down")
    assert thopters("wait", "dev", identity).code == 137


# what it has printed


def test_logs_are_what_the_terminal_got_byte_for_byte(thopters: Thopters, sprite: Sprite) -> None:
    script = rf"printf 'a\nb\0\001\377\033[2J\nlast'; {UNTIL_GO}"
    identity = detach(thopters, "sh", "-c", script)
    shown = b"a\r\nb\0\1\xff\x1b[2J\r\nlast"
    assert thopters("logs", "dev").out_bytes == shown
    assert thopters("logs", "dev", identity, "--tail", "1").out_bytes == b"last"
    assert thopters("logs", "dev", "--tail", "2").out_bytes == b"b\0\1\xff\x1b[2J\r\nlast"
    assert thopters("logs", "dev", "--tail", "0").out_bytes == b""
    follower = thopters.start("logs", "dev", "-f")
    assert follower.stdout and follower.stdout.read(len(shown)) == shown
    session_of(sprite, identity).write(b"typed")  # is echoed
    assert follower.stdout.read(5) == b"typed"
    let_go(sprite, identity)
    assert (follower.stdout.read(), follower.wait(60)) == (b"", 0)


def test_logs_since_a_time(thopters: Thopters, sprite: Sprite) -> None:
    """By the index, whose lines tell how far the output was at which second."""
    identity = detach(thopters, "sh", "-c", f"echo one; {UNTIL_GO}; echo two")
    index = record(sprite, identity) / "index"
    until(index.exists, "the first line is noted")
    assert re.fullmatch(r"\d{10} 5\n", index.read_text())
    let_go(sprite, identity)
    assert thopters("logs", "dev", "--since", "1h").out == "one\r\ntwo\r\n"
    index.write_text(f"{int(time.time()) - 7200} 5\n")
    assert thopters("logs", "dev", "--since", "1h").out == "two\r\n"
    assert thopters("logs", "dev", "--since", "3h").out == "one\r\ntwo\r\n"
    assert thopters("logs", "dev", "--since", "3h", "--tail", "1").out == "two\r\n"


def test_a_flood_is_cut_with_a_line_that_says_so(thopters: Thopters, sprite: Sprite) -> None:
    """And the command goes on to its end."""
    shorten(thopters, MOST_OUTPUT=100_000)
    script = f"{UNTIL_GO}; head -c 3000000 /dev/zero | tr '\\0' x; exit 4"
    identity = detach(thopters, "sh", "-c", script)
    let_go(sprite, identity)
    assert thopters("wait", "dev").code == 4
    done = thopters("logs", "dev")
    assert done.code == 0
    kept, _, rest = done.out_bytes.partition(b"\r\n")
    assert kept == b"x" * 100_000
    assert rest == b"[thopters: only the first 100000 bytes are kept]\r\n"
    assert f"this is not all that {identity} printed" in done.err


def test_ctrl_c_leaves_the_command_alone(thopters: Thopters, sprite: Sprite) -> None:
    identity = detach(thopters, "sh", "-c", "echo begun; sleep 600")
    with Tty(thopters, "logs", "dev", "-f") as terminal:
        terminal.expect("begun\r\r\n")
        terminal.type(CTRL_C)
        assert terminal.end() == -signal.SIGINT
    told = {item["id"]: item["kind"] for item in listed(thopters)}
    assert told.pop(identity) == "command"
    assert set(told.values()) <= {"other"}  # the end of the log, for some seconds yet


def test_p5_questions_and_the_clipboard_of_the_past_do_not_reach_a_terminal(
    thopters: Thopters, sprite: Sprite
) -> None:
    """Cut anywhere: what asks is written in two halves, a byte of an escape in each."""
    asks = r"\033[6n\033]52;c;c2VjcmV0\007\033[?1000h\007\302\2336n"  # an 8-bit one, too
    script = rf"printf 'red\033[31m{asks}'; printf 'a\033'; sleep 0.1; printf '[cb\033[mend\n'"
    identity = detach(thopters, "sh", "-c", f"{script}; {UNTIL_GO}")
    let_go(sprite, identity)
    with Tty(thopters, "logs", "dev") as terminal:
        terminal.expect("end\r\r\n")
        assert terminal.end_restored() == 0
    shown = terminal.shown.partition(b"end\r\r\n")[0]
    assert shown == b"red\x1b[31m6nab\x1b[m"
    assert b"\x1b[?1000h" not in terminal.shown
    assert b"\x1b]52" in thopters("logs", "dev").out_bytes


def test_nothing_is_kept_of_the_output_where_that_is_not_wanted(
    thopters: Thopters, sprite: Sprite
) -> None:
    identity = detach(thopters, "sh", "-c", f"echo said; {UNTIL_GO}; exit 6",
                      options=("--no-record",))  # fmt: skip
    let_go(sprite, identity)
    assert thopters("wait", "dev", identity).code == 6
    done = thopters("logs", "dev", identity)
    assert (done.code, done.out) == (3, "")
    assert f"{identity} of dev was started with --no-record" in done.err
    assert (record(sprite, identity) / "output").read_bytes() == b""


@pytest.mark.parametrize("where", [1, 130, 200, 240])
def test_a_log_that_is_followed_is_read_on_where_it_was_cut(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, where: int
) -> None:
    """Nothing comes twice, and nothing is missing."""
    cut_and_follow(thopters, emulator, sprite, [where])


@pytest.mark.slow
def test_a_log_that_is_followed_is_read_on_wherever_it_is_cut(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    cut_and_follow(thopters, emulator, sprite, list(range(0, 1600, 7)))


def cut_and_follow(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, places: list[int]
) -> None:
    script = f"seq 100; {UNTIL_GO}; rm -f go; seq 100 200; exec sleep 0.2"
    identity = detach(thopters, "sh", "-c", script)
    with Relay(int(emulator.url.rpartition(":")[2])) as relay:
        thopters.env["SPRITES_API_URL"] = relay.url
        for place in places:
            # the second connection is the log's; the first looked for the job
            relay.arm(Cut(1, place, reset=place % 2 == 0))
            follower = thopters.start("logs", "dev", identity, "-f")
            assert follower.stdout and follower.stderr
            if place == places[-1]:
                (sprite.home / "go").touch()
                out, err = follower.communicate(timeout=60)
                assert out == b"".join(b"%d\r\n" % n for n in [*range(1, 101), *range(100, 201)])
                assert (follower.returncode, err) == (0, b"")
            else:
                begin = b"".join(b"%d\r\n" % n for n in range(1, 101))
                assert follower.stdout.read(len(begin)) == begin
                follower.kill()
                follower.wait()


def test_a_log_is_followed_over_a_pause_and_does_not_wake_the_sprite(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    shorten(thopters, OUTSIDE_EVERY_S=0.1, STATUS_LAG_S=0.5)
    identity = detach(thopters, "sh", "-c", f"echo one; {UNTIL_GO}; echo two; exec sleep 0.3")
    follower = thopters.start("logs", "dev", "-f")
    assert follower.stdout and follower.stderr
    assert follower.stdout.readline() == b"one\r\n"
    sprite.pause()
    paused = b"[dev has paused; the log goes on when it wakes]\n"
    assert follower.stderr.readline() == paused
    emulator.journal.clear()
    emulator.journal.wait(4)
    assert {request.method for request in emulator.journal} == {"GET"}
    assert not emulator.journal.requests("GET", "/v1/sprites/dev/exec")
    assert sprite.status == "warm"
    (sprite.home / "go").touch()
    assert thopters("resume", "dev").code == 0
    assert (follower.stdout.read(), follower.wait(60)) == (b"two\r\n", 0)
    assert follower.stderr.read() == b""
    assert status_of(sprite, identity) == "0"


# to wait


def test_wait_says_when_the_time_is_up(thopters: Thopters, sprite: Sprite) -> None:
    identity = detach(thopters, "sleep", "600", options=("--name", "nap"))
    done = thopters("wait", "dev", "nap", "--timeout", "1s")
    assert (done.code, done.out) == (7, ""), done
    ran = f"the time is up: {identity} of dev ran when it was last looked at"
    assert done.err.splitlines()[-1] == ran
    done = thopters("wait", "dev", "--timeout", "0", "--json")
    assert (done.code, done.err) == (7, ran + "\n")
    told = {"id": identity, "state": "running", "status": None, "timed_out": True}
    assert json.loads(done.out) == {"schema_version": 1} | told


def test_wait_rings_once_on_a_terminal(thopters: Thopters, sprite: Sprite) -> None:
    identity = detach(thopters, "sh", "-c", f"{UNTIL_GO}; exit 9")
    with Tty(thopters, "wait", "dev", identity) as terminal:
        (sprite.home / "go").touch()
        assert terminal.end_restored() == 9
    assert terminal.output.count(b"\a") == 1
    assert terminal.output.endswith(f"{identity} of dev has ended with status 9\r\n".encode())


def test_what_ended_before_its_sprite_slept_is_told_by_one_look(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    identity = detach(thopters, "sh", "-c", f"{UNTIL_GO}; exit 8")
    let_go(sprite, identity)
    sprite.pause()
    emulator.journal.clear()
    done = thopters("wait", "dev", identity, "--json")
    assert (done.code, json.loads(done.out)["status"]) == (8, 8)
    inside = [f"{request.method} {request.path}" for request in emulator.journal]
    assert [line for line in inside if line.endswith("/exec")][-1:] == ["WS /v1/sprites/dev/exec"]
    assert sprite.inner and not sprite.tasks


QUICK = {"LOOK_EVERY_S": 0.6, "OUTSIDE_EVERY_S": 0.1, "LOOK_LIMIT_S": 0}


def test_wait_neither_wakes_a_sprite_nor_keeps_it_awake(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    """Its idle window is shorter than the time between two looks."""
    shorten(thopters, **QUICK)
    identity = detach(thopters, "sh", "-c", f"{UNTIL_GO}; exit 2")
    emulator.idle_s = 0.4
    emulator.journal.clear()
    waiter = thopters.start("wait", "dev", identity)
    assert waiter.stderr
    goes_on = b"dev sleeps, and the command is not finished; it goes on when dev wakes\n"
    assert waiter.stderr.readline() == goes_on
    assert sprite.status == "warm"
    emulator.journal.clear()
    emulator.journal.wait(6)
    assert {request.path for request in emulator.journal} <= {"/v1/sprites/dev", "/v1/sprites"}
    emulator.idle_s = 30.0
    (sprite.home / "go").touch()
    assert thopters("resume", "dev").code == 0
    out, err = waiter.communicate(timeout=60)
    assert (waiter.returncode, out) == (2, b"")
    assert err.decode().splitlines() == [f"{identity} of dev has ended with status 2"]


def test_wait_without_waking_asks_nothing_of_a_sprite_that_sleeps(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    shorten(thopters, **QUICK)
    identity = detach(thopters, "sh", "-c", f"{UNTIL_GO}; exit 2")
    let_go(sprite, identity)
    sprite.pause()
    emulator.journal.clear()
    done = thopters("wait", "dev", "--no-wake", "--timeout", "1s")
    assert done.code == 7
    assert done.err.splitlines() == [
        "dev sleeps, so nobody knows; it is looked at when it wakes",
        "thopters: error: the time is up; dev sleeps, so nothing is known",
    ]
    assert {request.path for request in emulator.journal} <= {"/v1/sprites/dev", "/v1/sprites"}
    assert sprite.status == "warm"
    waiter = thopters.start("wait", "dev", "--no-wake")
    assert waiter.stderr and waiter.stderr.readline().startswith(b"dev sleeps")
    assert thopters("resume", "dev").code == 0
    assert waiter.wait(60) == 2
    waiter.communicate()


@needs_curl
@needs_namespace
def test_the_end_of_what_is_waited_for_is_not_slept_through(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    """Its end keeps the sprite awake until the next look; without a waiter it does not."""
    identity = detach(thopters, "sh", "-c", f"{UNTIL_GO}; exit 2")
    let_go(sprite, identity)
    until(session_of(sprite, identity).ended.is_set, "all of it has ended")
    assert not sprite.tasks
    (sprite.home / "go").unlink()
    shorten(thopters, **QUICK)
    identity = detach(thopters, "sh", "-c", f"{UNTIL_GO}; exit 2")
    waiter = thopters.start("wait", "dev", identity)
    until((record(sprite, identity) / "waited").exists, "it is waited for")
    emulator.idle_s = 0.3
    let_go(sprite, identity)
    assert waiter.wait(60) == 2
    waiter.communicate()
    [name] = sprite.tasks
    assert name.startswith("thopters-ended-")


@needs_curl
@needs_namespace
def test_what_holds_its_sprite_is_waited_for_inside_and_lets_it_sleep(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    shorten(thopters, HOLD_FIRST_S=0.1)
    script = f"{UNTIL_GO}; exit 3"
    identity = detach(thopters, "sh", "-c", script, options=("--hold",))
    until(lambda: sprite.tasks, "it is held")
    emulator.idle_s = 0.5
    waiter = thopters.start("wait", "dev", identity)
    until(lambda: len(sprite.sessions) > 2, "it waits inside")
    (sprite.home / "go").touch()
    assert waiter.wait(60) == 3
    waiter.communicate()
    until(lambda: sprite.status == "warm", "it sleeps")
    assert not sprite.live_tasks()


@needs_curl
@needs_namespace
@pytest.mark.parametrize(
    ("words", "seen", "code"),
    [(("wait", "--timeout", "20s"), r"tail .*--pid=%d ", 3), (("logs", "-f"), r"tail -c .*%d ", 0)],
    ids=["wait", "logs"],
)
def test_the_end_of_what_holds_its_sprite_is_learnt_where_the_connection_was_lost(
    thopters: Thopters,
    emulator: Emulator,
    sprite: Sprite,
    words: tuple[str, ...],
    seen: str,
    code: int,
) -> None:
    """It sleeps as the command has ended, so nothing else would ever wake it for the waiter."""
    shorten(thopters, HOLD_FIRST_S=0.1, STATUS_LAG_S=30, **QUICK | {"LOOK_EVERY_S": 30.0})
    script = f"{UNTIL_GO}; echo out; exit 3"
    identity = detach(thopters, "sh", "-c", script, options=("--hold",))
    until(lambda: sprite.tasks, "it is held")
    emulator.idle_s = 0.5
    with Relay(int(emulator.url.rpartition(":")[2])) as relay:
        thopters.env["SPRITES_API_URL"] = relay.url
        waiter = thopters.start(words[0], "dev", identity, *words[1:])
        inside = ["pgrep", "-f", seen % process_of(sprite, identity)[0]]
        until(lambda: not subprocess.run(inside, stdout=-3).returncode, "it is inside")
        waiter.send_signal(signal.SIGSTOP)  # as where the laptop is closed
        for connection in relay.connections:
            connection.close()
        (sprite.home / "go").touch()
        until(lambda: sprite.status == "warm", "it sleeps")
        waiter.send_signal(signal.SIGCONT)
        out, err = waiter.communicate(timeout=25)
    assert waiter.returncode == code, err
    if words[0] == "wait":
        assert err.decode().splitlines() == [f"{identity} of dev has ended with status 3"]
    else:
        assert (out, err) == (b"out\r\n", b"")


# the terminal


def test_it_has_a_terminal_that_can_be_attached_to_at_two_sizes(
    thopters: Thopters, sprite: Sprite
) -> None:
    """And what it draws at each is recorded."""
    script = 'stty -echo; while s=$(stty size); do [ "$s" = "$t" ] || echo "size $s"; t=$s; done'
    identity = detach(thopters, "bash", "-c", script, options=("--name", "screen"))
    for columns, rows in ((100, 30), (60, 20)):
        with Tty(thopters, "attach", "dev", "screen", columns=columns, rows=rows) as terminal:
            terminal.expect(f"size {rows} {columns}\r\n")
            terminal.resize(columns - 1, rows - 1)
            terminal.expect(f"size {rows - 1} {columns - 1}\r\n")
            assert window(session_of(sprite, identity)) == (columns - 1, rows - 1)
            terminal.type(LEAVE)
            terminal.expect(f"back to it: thopters attach dev {identity}]")
            assert terminal.end_restored() == 0
    told = thopters("logs", "dev", "screen").out.split("\r\n")
    for size in ("30 100", "29 99", "20 60", "19 59"):
        assert f"size {size}" in told
    with Tty(thopters, "attach", "dev", "screen") as terminal:
        terminal.expect("size 24 80")
        terminal.type(CTRL_C)
        assert terminal.end_restored() == 130
    assert status_of(sprite, identity) == "130"


def test_its_environment_is_that_of_any_command(thopters: Thopters, sprite: Sprite) -> None:
    thopters.env["GREETING"] = "hello there"
    words = ("--env", "MINE=a b", "--env", "GREETING", "--dir", "/tmp", "--", "env")
    identity = thopters("exec", "dev", "-d", *words).out.strip()
    plain = thopters("exec", "dev", *words).out
    until(lambda: status_of(sprite, identity) != "-", "it has ended")
    told = set(thopters("logs", "dev").out.splitlines())
    assert told - {"TERM=xterm", "LANG=C.UTF-8"} == set(plain.splitlines())  # as with exec -t
    assert "MINE=a b" in told and "PWD=/tmp" in told
    [item] = listed(thopters, "--all")
    assert (item["directory"], item["argv"]) == ("/tmp", ["env"])


def test_attach_asks_which_one_is_meant(thopters: Thopters, sprite: Sprite) -> None:
    first = detach(thopters, "sh", "-c", "echo this-one; read line; exit 3")
    second = detach(thopters, "sleep", "600")
    done = thopters("attach", "dev")
    assert (done.code, done.out) == (2, "")
    assert "2 commands run on terminals in dev" in done.err
    assert first in done.err and second in done.err
    with Tty(thopters, "attach", "dev") as terminal:
        terminal.expect("Which command? A number or an id: ")
        number = re.search(rf"(\d)  {first}  sh -c 'echo this-one", terminal.text)
        assert number, terminal.text
        terminal.type(f"{number[1]}\n")
        terminal.expect("this-one")
        terminal.type("\n")
        assert terminal.end_restored() == 3


def test_what_else_runs_is_named_as_what_it_is(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    words = ["sh", "-c", "sleep 600; true"]
    other = Session(sprite, emulator.personality, words, env=[], directory="", tty=True, stdin=True)
    sprite.sessions[str(other.id)] = other
    running = leave_running(thopters, "sh", "-c", "echo up; sleep 600")
    with open_shell(thopters) as shell:
        shell.ask("cd /tmp; echo mo''ved", "moved")
        told = {str(item["session"]): item for item in listed(thopters)}
        assert told.pop(str(other.id))["kind"] == "other"
        item = told.pop(running.partition(".")[0])
        assert (item["id"], item["kind"], item["status"]) == (running, "command", None)
        assert item["argv"] == ["sh", "-c", "echo up; sleep 600"]
        [item] = told.values()
        assert (item["kind"], item["directory"], item["argv"]) == ("shell", "/tmp", ["bash", "-l"])
        rows = [line.split("\t")[1] for line in thopters("sessions", "dev").out.splitlines()]
        assert sorted(rows) == ["/usr/bin/sh", "sh -c 'echo up; sleep 600'", "shell"]
        shell.type("exit\n")
        assert shell.end_restored() == 0


@needs_curl
@needs_namespace
def test_a_hold_by_hand_is_named_as_one(thopters: Thopters, sprite: Sprite) -> None:
    done = thopters("hold", "dev", "--for", "90m")
    assert re.fullmatch(r"dev stays awake until .*\d\d:\d\d \(1h30m\)\n", done.out), done
    [item] = listed(thopters)
    assert (item["kind"], item["argv"], item["terminal"]) == ("hold", [], False)
    assert thopters("sessions", "dev").out.split("\t")[1] == "(hold)"
    assert thopters("kill", "dev", str(item["id"])).code == 0
    until(lambda: not sprite.live_tasks(), "nothing holds it")


# P7: a number that means another session after a cold boot


def boot_cold(sprite: Sprite, number: str, emulator: Emulator) -> Session:
    """Have a sprite start anew, and another command get a session's number there."""
    sprite.pause(cold=True)
    while not sprite.enter():
        pass
    words = ["sh", "-c", "while read line; do echo got-$line > $HOME/typed; done"]
    other = Session(sprite, emulator.personality, words, env=[], directory="", tty=True, stdin=True)
    other.created += 100
    sprite.sessions.clear()
    sprite.sessions[number] = other
    other.id = int(number)
    return other


def test_p7_a_window_left_open_types_into_no_other_session(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    with open_shell(thopters) as shell:
        [number] = sprite.sessions
        pid = sprite.sessions[number].process.pid
        boot_cold(sprite, number, emulator)
        shell.type("rm -rf x\n")
        shell.expect("the session has ended; a key starts a new shell, Ctrl-\\ leaves]")
        shell.type(LEAVE)
        shell.end_restored()
    assert pid and not (sprite.home / "typed").exists()


def test_p7_an_old_id_means_no_other_session(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    identity = leave_running(thopters, "sh", "-c", "echo up; sleep 600")
    job = detach(thopters, "sleep", "600")
    number = identity.partition(".")[0]
    other = boot_cold(sprite, number, emulator)
    for old in (identity, job):
        for command in ("kill", "attach"):
            done = thopters(command, "dev", old)
            assert (done.code, done.out) == (3, ""), done
    assert not other.ended.is_set()


# records


def test_two_starts_at_once_do_not_share_a_label(thopters: Thopters, sprite: Sprite) -> None:
    words = ("exec", "dev", "-d", "--name", "tests", "--", "sleep", "600")
    results: list[Result] = []
    threads = [threading.Thread(target=lambda: results.append(thopters(*words))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = sorted(results, key=lambda result: result.code)
    assert [result.code for result in done] == [0, 255, 255, 255]
    for refused in done[1:]:
        assert refused.out == ""
        assert "there is a detached command tests in dev already" in refused.err
        assert "thopters kill dev tests --forget" in refused.err
    [item] = listed(thopters, "--all")
    assert (item["id"], item["label"]) == (done[0].out.strip(), "tests")
    running = thopters("kill", "dev", "tests", "--forget")
    assert running.code == 1
    assert "runs, so its record stays" in running.err
    assert thopters("kill", "dev", "tests").out == "tests has ended\n"
    assert thopters("kill", "dev", "tests", "--forget").out == "the record of tests is gone\n"
    assert [path.name for path in (sprite.home / ".thopters/jobs").iterdir()] == []
    assert thopters(*words).code == 0


@pytest.mark.parametrize("places", [[300, 5000, 20_000]], ids=["some"])
def test_a_client_that_is_lost_at_the_start_leaves_no_command_without_a_record(
    thopters: Thopters, emulator: Emulator, sprite: Sprite, places: list[int]
) -> None:
    lose_clients(thopters, emulator, sprite, places)


@pytest.mark.slow
def test_a_client_that_is_lost_anywhere_leaves_no_command_without_a_record(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    lose_clients(thopters, emulator, sprite, list(range(0, 24_000, 397)))


def lose_clients(thopters: Thopters, emulator: Emulator, sprite: Sprite, places: list[int]) -> None:
    """Kill the client when so many bytes of its start have gone up: what runs has a record."""
    with Relay(int(emulator.url.rpartition(":")[2])) as relay:
        thopters.env["SPRITES_API_URL"] = relay.url
        for place in places:
            relay.arm(Cut(0, place, upward=True, stay=True))
            client = thopters.start("exec", "dev", "-d", "--", "touch", f"ran-{place}")

            def is_cut(client: subprocess.Popen[bytes] = client) -> bool:
                cut = [connection.was_cut.is_set() for connection in relay.connections]
                return any(cut) or client.poll() is not None

            until(is_cut, "its start is cut, or was shorter")
            client.kill()
            client.communicate()
            relay.arm(None)
    thopters.use(emulator)
    ran = {path.name for path in sprite.home.glob("ran-*")}
    recorded = [item["argv"] for item in listed(thopters, "--all")]
    assert all(["touch", name] in recorded for name in ran)


def copies(sprite: Sprite, identity: str, count: int, started: float) -> list[str]:
    """Return the ids of copies of a record, a second older each."""
    made = []
    for number in range(count):
        name = f"{number:010x}"
        shutil.copytree(record(sprite, identity), record(sprite, name))
        fields = (record(sprite, name) / "process").read_text().split()
        text = " ".join([str(int(started) - number), *fields[1:]])
        (record(sprite, name) / "process").write_text(f"{text:127}\n")
        made.append(name)
    sprite.machine.own(sprite.home / ".thopters")
    return made


def test_what_is_too_much_is_forgotten_by_the_next_start(
    thopters: Thopters, sprite: Sprite
) -> None:
    running = detach(thopters, "sleep", "600")
    identity = detach(thopters, "sh", "-c", UNTIL_GO, options=("--name", "old"))
    let_go(sprite, identity)
    now = time.time()
    made = copies(sprite, identity, 60, now - 1000)
    days = copies_of_days(sprite, identity, now)
    newest = detach(thopters, "sleep", "601")
    jobs = sprite.home / ".thopters/jobs"
    until(lambda: len(list(jobs.glob("[0-9a-f]*"))) <= 50, "it is tidied up")
    kept = {path.name for path in jobs.iterdir()}
    assert kept == {running, identity, newest, "=old", *made[:47]}
    assert days not in kept
    with open(record(sprite, made[3]) / "output", "wb") as file:
        file.truncate(300_000_000)
    detach(thopters, "sleep", "602")
    until(lambda: len(list(jobs.glob("[0-9a-f]*"))) < 20, "all from the large one on are gone")
    assert {path.name for path in jobs.iterdir()} >= {running, identity, newest, *made[:3]}
    assert not record(sprite, made[3]).exists()


def copies_of_days(sprite: Sprite, identity: str, now: float) -> str:
    shutil.copytree(record(sprite, identity), record(sprite, "ffffffffff"))
    fields = (record(sprite, "ffffffffff") / "process").read_text().split()
    text = " ".join([str(int(now) - 31 * 86400), *fields[1:]])
    (record(sprite, "ffffffffff") / "process").write_text(f"{text:127}\n")
    sprite.machine.own(sprite.home / ".thopters")
    return "ffffffffff"


def test_without_room_for_a_record_the_command_runs_and_this_is_said(
    thopters: Thopters, sprite: Sprite
) -> None:
    (sprite.home / ".thopters").mkdir()
    (sprite.home / ".thopters/jobs").write_text("in the way\n")
    sprite.machine.own(sprite.home / ".thopters")
    done = thopters("exec", "dev", "-d", "--", "sh", "-c", "echo up; read line; exit 4")
    assert done.code == 0
    assert "nothing is recorded of it" in done.err
    identity = done.out.strip()
    assert re.fullmatch(r"\d+\.[0-9a-z]+", identity)
    [item] = listed(thopters)
    assert (item["id"], item["kind"]) == (identity, "command")
    with Tty(thopters, "attach", "dev", identity) as terminal:
        terminal.expect("up")
        terminal.type("\n")
        assert terminal.end_restored() == 4


@pytest.mark.skipif(namespace_kind() != "root", reason="no file system can be mounted")
def test_a_disk_that_fills_up_loses_output_and_not_the_command(
    thopters: Thopters, sprite: Sprite
) -> None:
    assert thopters("exec", "dev", "--", "mkdir", "-p", ".thopters").code == 0
    words = sprite.machine.command(["mount", "-t", "tmpfs", "-o", "size=200k,mode=777"], "/")
    words = [word for word in words if not word.startswith(("--setuid", "--setgid"))]
    subprocess.run([*words, "tmpfs", "/home/sprite/.thopters"], check=True)
    script = f"echo begun; {UNTIL_GO}; head -c 1000000 /dev/zero | tr '\\0' x; exit 5"
    identity = detach(thopters, "sh", "-c", script)
    (sprite.home / "go").touch()
    assert thopters("wait", "dev", identity).code == 5
    done = thopters("logs", "dev", identity)
    assert done.out.startswith("begun\r\n")
    assert 10_000 < len(done.out) < 200_000
    assert f"this is not all that {identity} printed: the sprite's disk was full" in done.err
    refused = thopters("exec", "dev", "-d", "--name", "more", "--", "sleep", "600")
    assert refused.code == 0
    assert "nothing is recorded of it" in refused.err


def test_nothing_is_written_elsewhere_and_nobody_else_can_read_it(
    thopters: Thopters, sprite: Sprite
) -> None:
    before = {path.name for path in sprite.home.iterdir()}
    identity = detach(thopters, "sleep", "600", options=("--name", "nap"))
    assert {path.name for path in sprite.home.iterdir()} - before == {".thopters"}
    thopters("kill", "dev", "nap")
    for path in (record(sprite, identity).parent, record(sprite, identity)):
        assert path.stat().st_mode & 0o777 == 0o700
    for path in record(sprite, identity).iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path


def test_r01_a_record_holds_no_key_and_no_value_of_env(
    thopters: Thopters, sprite: Sprite, config: Path
) -> None:
    key = CONFIG["secrets"]["ANTHROPIC_API_KEY"]
    thopters.env["MINE"] = "canary-of-the-environment"
    argv = ["sh", "-c", "sleep 600", key, f"--token={key}", thopters.env["SPRITE_TOKEN"]]
    options = ("--env", "MINE", "--env", "GIVEN=canary-that-was-given")
    identity = detach(thopters, *argv, options=options)
    kept = b"".join(path.read_bytes() for path in record(sprite, identity).iterdir())
    for canary in (key, "canary-", thopters.env["SPRITE_TOKEN"]):
        assert canary.encode() not in kept
    [item] = listed(thopters)
    assert item["argv"] == ["sh", "-c", "sleep 600", "****", "--token=****", "****"]


def test_r01_a_long_word_shows_no_part_of_a_key(
    thopters: Thopters, sprite: Sprite, config: Path
) -> None:
    """A word is cut in the sprite, where nobody knows the keys."""
    fill = "x" * (program.MOST_WORD - 12)
    key = CONFIG["secrets"]["ANTHROPIC_API_KEY"]
    child = thopters.start("exec", "dev", "--", "sh", "-c", "echo up; sleep 60", fill + key)
    assert child.stdout and child.stdout.readline() == b"up\n"
    listing = thopters("sessions", "dev", "--json")
    assert fill in listing.out and key[:6] not in listing.out, listing
    pausing = thopters("pause", "dev", "--no-wait")
    assert fill in pausing.err and key[:6] not in pausing.out + pausing.err, pausing
    child.terminate()
    child.communicate(timeout=30)


def test_hostile_words_are_shown_harmlessly(thopters: Thopters, sprite: Sprite) -> None:
    odd = "a\nb\x1b[31m\x1b]0;t\x07\t\u202e%d"
    words = ["sh", "-c", "exec sleep 600", odd, os.fsdecode(b"\xff\xfe")]
    first = detach(thopters, *words)
    second = detach(thopters, "sh", "-c", "exec sleep 600", "x" * 100_000, "last")
    found = {item["id"]: item["argv"] for item in listed(thopters)}
    assert found[first] == words
    long = found[second]
    assert isinstance(long, list) and len(long) == 4
    assert re.fullmatch("x{1000,8000}…", long[3])
    rows = thopters("sessions", "dev").out.splitlines()
    assert len(rows) == 2
    shown = next(row for row in rows if row.startswith(first))
    assert r"a\nb\x1b[31m\x1b]0;t\x07\t\u202e%d" in shown
    with Tty(thopters, "sessions", "dev", columns=90) as terminal:
        assert terminal.end_restored() == 0
    assert all(len(line) <= 90 for line in terminal.screen.lines)
    assert "…" in terminal.text
    sprite.sessions.clear()


@pytest.fixture
def hostile(thopters: Thopters, sprite: Sprite) -> Iterator[str]:
    """Return the id of a job whose record a hostile sprite has changed."""
    identity = detach(thopters, "sleep", "600")
    yield identity


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("about", "no json\n"),
        ("about", '{"argv": "x", "label": 7, "keeps_output": "yes", "hold_s": true}\n'),
        ("about", '{"argv": ["x"], "label": "x; rm -rf ~", "keeps_output": true}\n'),
        ("../abc; rm -rf ~", ""),
        ("process", "x y z\n"),
        ("process", "\n"),
        ("status", "\x1b[2J now\n"),
        ("status", "9" * 5000 + " -1\n"),
        ("rest", "\x1b[2J\n"),
        ("directory", "/tmp/\n\x1b[2J"),
    ],
)
def test_a_record_that_was_changed_is_no_crash(
    thopters: Thopters, sprite: Sprite, hostile: str, name: str, text: str
) -> None:
    place = record(sprite, hostile) / name
    if text:
        place.write_text(text)
    else:  # a record whose name is not an id
        shutil.copytree(record(sprite, hostile), place)
    for words in (["sessions", "dev", "--all"], ["logs", "dev"], ["wait", "dev", "--timeout", "0"]):
        done = thopters(*words)
        assert "internal error" not in done.err, done
        assert "\x1b" not in done.out + done.err
        assert "rm -rf" not in done.out + done.err


def test_a_failed_start_leaves_nothing_behind(thopters: Thopters, sprite: Sprite) -> None:
    done = thopters("exec", "dev", "-d", "--name", "x", "--", "sh", "-c", "exit 3")
    assert (done.code, done.out) == (3, "")
    assert listed(thopters, "--all") == []


def test_where_no_command_runs_the_platforms_list_is_what_is_known(
    thopters: Thopters, emulator: Emulator, sprite: Sprite
) -> None:
    """A job's record is not known then, so an id is not called unknown."""
    identity = detach(thopters, "sleep", "600")
    emulator.fault(Fault("WS */exec", "reset", times=None))
    done = thopters("sessions", "dev")
    assert (done.code, done.out.split("\t")[1]) == (0, "/usr/bin/bash"), done
    assert "what runs there is known by the platform's list alone" in done.err
    for words in (["sessions", "dev", "--all"], ["kill", "dev", identity], ["logs", "dev"]):
        done = thopters(*words)
        assert (done.code, done.out) == (1, ""), done
